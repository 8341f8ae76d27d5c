PREFIX ?= /usr/local
target := $(or $(CARGO_TARGET_DIR),target)/x86_64-unknown-linux-gnu
kickvm := $(target)/release/kickvm

.PHONY: help run build test bench kernel lint book chapter exercise install dist test-dist clean deps

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

run: build ## boot a stock Debian kernel to a shell on a terminal, else to a greeting
	@KICKVM=$(abspath $(kickvm)) scripts/run

build: deps ## build the release binary, which is static
	scripts/cargo build --release

test: deps ## run every test, on this machine's KVM or in an emulated one
	@scripts/test

bench: ## run the benchmarks
	@scripts/deps bench
	scripts/cargo build --profile bench --all-features --examples
	scripts/cargo bench --all-features --bench '*'

kernel: ## build the small guest kernel of resources/kernel-config
	@scripts/build-kernel

lint: deps ## check formatting, lints, documentation and scripts
	@scripts/lint

book: deps ## build the course, docs/, as a web page
	@scripts/book

chapter: deps ## run the program of a chapter of the course: make chapter N=01
	@scripts/course chapter $(N)

exercise: deps ## check one exercise of the course: make exercise N=01a
	@scripts/course exercise $(N)

install: build ## install the binary, manual pages and completions below PREFIX (/usr/local)
	scripts/cargo build --release --example manual
	install -D -m 755 $(kickvm) $(DESTDIR)$(PREFIX)/bin/kickvm
	mkdir -p $(DESTDIR)$(PREFIX)/share
	$(target)/release/examples/manual $(DESTDIR)$(PREFIX)/share

dist: deps ## make the files of a release in dist/: archive, Debian package, SBOM
	@scripts/dist

test-dist: deps ## test these files, and that they are reproducible (as root)
	@scripts/test-dist

clean: ## remove what cargo built (downloads and kernels stay in ~/.cache/kickvm)
	scripts/cargo clean
	rm -rf dist

deps:
	@scripts/deps
