package compat_test

// known lists the accepted differences.
func known() []difference {
	return nil
}
