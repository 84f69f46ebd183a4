//go:build !race

package overlay

const thin = 1
