// Command livemountd owns a store and serves its API.
package main

import (
	"os"

	"livemount/server/daemon"
)

func main() { os.Exit(daemon.Main(os.Args[1:], os.Stdout, os.Stderr)) }
