// Command mountctl is the command line of Livemount, a client of livemountd.
package main

import (
	"os"

	"livemount/mountctl"
)

func main() { os.Exit(mountctl.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
