# The commands of everyday work. `make` lists them.
#
# Everything that needs RabbitMQ or PostgreSQL runs under deploy/dev/with-services, which installs what is missing, starts
# private instances on free ports with their data under target/, and leaves nothing running.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export PATH := $(PATH):$(HOME)/.cargo/bin

CARGO_DENY_VERSION := 0.20.2
with_services := deploy/dev/with-services
# Where cargo puts what it builds.
built := $(or $(CARGO_TARGET_DIR),target)
# Where deploy/dev/trixie puts its Debian 13.
trixie := $(CURDIR)/target/trixie

.PHONY: help demo demo-on-servers test test-rabbitmq4 rabbitmq4 soak bench dist lint fmt clippy deny cargo-deny advisories clean ready build

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: cargo ## play a class through the whole pipeline, and say what came of it
	@deploy/dev/install ffmpeg cc
	cargo build --locked --bin rollcall
	$(built)/debug/rollcall demo --dir target/demo

demo-on-servers: ready ## the same on RabbitMQ and PostgreSQL
	cargo build --locked --workspace --bins
	$(with_services) sh -c 'exec $(built)/debug/rollcall demo --dir target/demo --queue "$$ROLLCALL_TEST_AMQP_URL" --database "$$ROLLCALL_TEST_POSTGRES_URL"'

test: ready build ## run every test (the long fault runs are `make soak`)
	$(with_services) cargo test --locked --workspace

test-rabbitmq4: rabbitmq4 ready build ## the same on Debian 13's RabbitMQ 4, in a chroot (as root)
	ROLLCALL_DEV_RABBITMQ_ROOT=$(trixie) $(with_services) cargo test --locked --workspace

rabbitmq4:
	@deploy/dev/trixie rabbitmq-server >/dev/null

soak: ready ## run the tests that take long, hours, on a release build (ROLLCALL_MODEL_MINUTES=5: less of the model)
	deploy/dev/install curl
	cargo build --locked --release --workspace --bins
	$(with_services) cargo test --locked --release -p rollcall-tests -- --ignored --nocapture --test-threads=1

bench: ready ## measure throughput and memory
	deploy/dev/install curl time
	cargo build --locked --release --workspace
	$(with_services) $(built)/release/rollcall-bench

programs := rollcall rollcall-ingress rollcall-worker

# Beside what cargo built, which it would not build again if it were stripped in its place.
dist: cargo ## build what packages and images are made of: stripped, each program's debug info beside it
	@deploy/dev/install cc
	cargo build --profile dist --locked $(programs:%=--bin %)
	mkdir -p $(built)/dist/programs
	cd $(built)/dist/programs && for program in $(programs); do \
		objcopy --only-keep-debug ../$$program $$program.debug; \
		objcopy --strip-all --add-gnu-debuglink=$$program.debug ../$$program $$program; \
	done
	ls -l $(built)/dist/programs

lint: fmt clippy deny ## check formatting, clippy and the dependencies

fmt: cargo
	cargo fmt --all --check

clippy: ready
	cargo clippy --locked --workspace --all-targets -- -D warnings

deny: cargo-deny
	$(cargo_deny) --locked check --hide-inclusion-graph bans licenses sources

# Not a part of `lint`: it changes without a change here, and needs the network.
advisories: cargo-deny ## look whether anything is known against the dependencies
	$(cargo_deny) --locked check --hide-inclusion-graph advisories

# The one that is installed, or else one of our own.
cargo_deny := PATH="$$PATH:$$PWD/target/tools/bin" cargo deny
cargo-deny: ready
	@command -v cargo-deny >/dev/null || [[ -x target/tools/bin/cargo-deny ]] || \
		cargo install cargo-deny --version $(CARGO_DENY_VERSION) --locked --root target/tools

clean: ## remove everything that was built
	cargo clean

# The tests spawn the programs from target/debug.
build: ready
	cargo build --locked --workspace --bins

.PHONY: cargo
cargo:
	@command -v cargo >/dev/null || { echo 'cargo is missing: install Rust from https://rustup.rs, then run make again' >&2; exit 1; }

# What a build and a run need; those that are there cost nothing.
ready: cargo
	@deploy/dev/install rabbitmq postgresql ffmpeg cc faketime
