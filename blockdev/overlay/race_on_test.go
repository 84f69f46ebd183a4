//go:build race

package overlay

// thin is the part of the long loops that runs under the race detector: one in so many.
const thin = 20
