# make         what can be made
# make test    everything that must hold before a change goes in

SHELL := /bin/bash
# Go's default folder and the system programs may be missing from PATH, as with su or in a cron job.
export PATH := $(PATH):/usr/local/go/bin:/usr/sbin:/sbin
export GOFLAGS := -buildvcs=false
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help build check test soak demo bench fuzz install uninstall clean go setup-demo setup-test setup-bench

PREFIX ?= /usr/local
UNITDIR ?= /etc/systemd/system
DESTDIR ?=
FUZZTIME ?= 60s
TIMEOUT ?= 15m

# Packages whose tests find races at a cost that is affordable in each run.
RACE := ./blockdev/... ./snapshotchain/chunkstore ./keyring ./fs ./fs/datastore ./fs/billyfs ./ingest/... ./nfsd/... ./internal/... ./server/... ./mountctl/...

help: ## list what can be made
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

go:
	@command -v go >/dev/null || { echo "Go is missing: https://go.dev/doc/install" >&2; exit 1; }

build: go ## build bin/livemountd and bin/mountctl
	@mkdir -p bin
	go build -o bin/ ./cmd/...

check: go ## format, vet, staticcheck, go.mod, and who may import whom
	@out=$$(gofmt -l .) && [ -z "$$out" ] || { echo "not formatted (gofmt -w): $$out" >&2; exit 1; }
	go vet ./...
	go tool staticcheck ./...
	go mod tidy -diff
	go test -count=1 ./test/tidy

test: go setup-test build check ## build, check and all tests; under 25 minutes on 2 cores
	go test -count=1 -timeout $(TIMEOUT) ./...
	go test -count=1 -race -timeout $(TIMEOUT) $(RACE)
	@echo "test: everything passed"

soak: go setup-test build ## the same tests, longer (LIVEMOUNT_SOAK=1)
	LIVEMOUNT_SOAK=1 go test -count=1 -timeout 6h ./...
	@echo "soak: everything passed"

demo: go setup-demo build ## back up a disk, mount two points, kill the daemon: two minutes
	@mkdir -p build
	@go build -o build/changed ./test/demo/changed
	@test/demo/demo.sh

bench: go setup-bench build ## measure beside borg, restic and qcow2; results in build/bench.json
	@mkdir -p build
	go build -o build/bench ./test/bench
	build/bench

fuzz: go ## every fuzz target for FUZZTIME (60s)
	@grep -rlE '^func Fuzz' --include=*_test.go . | xargs -n1 dirname | sort -u | while read -r dir; do \
	  for target in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]+' $$dir/*_test.go | cut -c6-); do \
	    echo "$$dir $$target"; \
	    go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x $$dir </dev/null || exit 1; \
	  done; \
	done
	@echo "fuzz: nothing found"

install: build ## binaries to PREFIX/bin, systemd unit to UNITDIR
	install -D -m 755 bin/livemountd $(DESTDIR)$(PREFIX)/bin/livemountd
	install -D -m 755 bin/mountctl $(DESTDIR)$(PREFIX)/bin/mountctl
	install -d -m 755 $(DESTDIR)$(UNITDIR)
	sed 's|/usr/local/bin/|$(PREFIX)/bin/|' packaging/livemountd.service > $(DESTDIR)$(UNITDIR)/livemountd.service
	@echo "Try: systemctl daemon-reload && systemctl enable --now livemountd"

uninstall: ## remove what install put there; the store stays
	rm -f $(DESTDIR)$(PREFIX)/bin/livemountd $(DESTDIR)$(PREFIX)/bin/mountctl $(DESTDIR)$(UNITDIR)/livemountd.service

clean: ## remove bin/ and build/, also the disk that bench made
	rm -rf bin build

setup-demo setup-test setup-bench: setup-%:
	@test/setup/install.sh $*
