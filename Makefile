# Everything starts here: `make help`. Recipes install what they need: npm's packages from package-lock.json,
# Debian's packages by test/tools.sh; both need a network or a filled cache once.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
ARCH ?= $(shell uname -m)
HOST := $(shell uname -m)

NPM_ARCH_x86_64 := x64
NPM_ARCH_aarch64 := aarch64
CC_x86_64 := x86_64-linux-gnu-gcc
CC_aarch64 := aarch64-linux-gnu-gcc
CFLAGS_x86_64 := -mno-red-zone
CFLAGS_aarch64 := -mno-outline-atomics
CFLAGS := -O2 -Wall -Wextra -Wno-unused-parameter -Werror -ffreestanding -nostdlib -fno-stack-protector \
	-Wl,-z,max-page-size=4096 -Wl,-z,noexecstack -Wl,--build-id=none

OUT := out
BUN := node_modules/@oven/bun-linux-$(NPM_ARCH_$(HOST))/bin/bun
SOURCES := $(shell find src ffi proto -path proto/gen -prune -o \( -name '*.ts' -o -name '*.js' -o -name '*.proto' \) -print)
# dotenv and bunfig autoload off: no file in any folder may change what a root daemon runs.
# splitting: otherwise every program loads what any of them imports of the runtime, 6 ms at each start.
BUILD_FLAGS := --compile --splitting --minify-syntax --bytecode --format=esm --no-compile-autoload-dotenv --no-compile-autoload-bunfig \
	--compile-exec-argv=--smol

.PHONY: help
help: ## print this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort -u | sed -E 's/^([a-z0-9-]+):[^#]*## /\1\t/' | expand -t 16

# --- toolchain ---------------------------------------------------------------

node_modules/.ready: package.json package-lock.json
	npm ci --ignore-scripts --no-audit --no-fund
	@touch $@

$(OUT)/tools.ready: test/tools.sh
	@mkdir -p $(OUT)
	test/tools.sh
	@touch $@

# --- build -------------------------------------------------------------------

.PHONY: build
build: $(OUT)/$(if $(filter $(HOST),$(ARCH)),,$(ARCH)/)cml ## build the executable out/cml (ARCH=aarch64: out/aarch64/cml)

.PHONY: proto
proto: proto/gen/proto.js ## write the protobuf codecs in proto/gen/

proto/gen/proto.js: $(wildcard proto/*.proto) proto/generate.ts node_modules/.ready
	$(BUN) proto/generate.ts

define NATIVE
$(OUT)/$(1)/run.so: ffi/run.c $(OUT)/tools.ready
	@mkdir -p $$(@D)
	$(CC_$(1)) $(CFLAGS) $(CFLAGS_$(1)) -shared -fPIC -Wl,--no-undefined -o $$@ $$<
$(OUT)/$(1)/cservice: ffi/cservice.c $(OUT)/tools.ready
	@mkdir -p $$(@D)
	$(CC_$(1)) $(CFLAGS) $(CFLAGS_$(1)) -static -Wl,-s -o $$@ $$<
$(OUT)/$(1)/stage0: initramfs/stage0.c $(OUT)/tools.ready
	@mkdir -p $$(@D)
	$(CC_$(1)) $(CFLAGS) $(CFLAGS_$(1)) -static -Wl,-s -o $$@ $$<
$(OUT)/$(1)/loader: initramfs/loader.c $(OUT)/tools.ready
	@mkdir -p $$(@D)
	$(CC_$(1)) $(CFLAGS) $(CFLAGS_$(1)) -static-pie -fPIE -Wl,-s -o $$@ $$<
endef
$(foreach a,x86_64 aarch64,$(eval $(call NATIVE,$(a))))

# What the source embeds always lies at out/run.so and out/cservice; it is the host's, except while a cross build runs.
$(OUT)/run.so $(OUT)/cservice: $(OUT)/%: $(OUT)/$(HOST)/%
	cp $< $@

$(OUT)/cml: $(SOURCES) $(OUT)/run.so $(OUT)/cservice proto/gen/proto.js
	$(BUN) build $(BUILD_FLAGS) src/main.ts --outfile $@
	@$(BUN) initramfs/sizes.ts $@

$(OUT)/aarch64/cml: $(SOURCES) $(OUT)/aarch64/run.so $(OUT)/aarch64/cservice $(OUT)/run.so $(OUT)/cservice proto/gen/proto.js
	$(BUN) initramfs/cross.ts aarch64 $@ $(BUILD_FLAGS)
	@$(BUN) initramfs/sizes.ts $@ /usr/aarch64-linux-gnu/lib

# The attackers of test/escape: a C library, because they are not ours.
$(OUT)/attack $(OUT)/storm: $(OUT)/%: test/escape/%.c $(OUT)/tools.ready
	gcc -static -O1 -Wall -Wextra -Werror -Wno-unused-result -o $@ $<

# --- ramdisk, disk, machine --------------------------------------------------

$(OUT)/kernel/vmlinuz: initramfs/kernel.sh $(OUT)/tools.ready
	initramfs/kernel.sh $(OUT)/kernel

INITRAMFS := initramfs/build.ts initramfs/hot.ts initramfs/hot.x86_64 initramfs/manifest.ts initramfs/modules.ts initramfs/cpio.ts initramfs/libraries.ts \
	$(shell find initramfs/files/etc -type f)

$(OUT)/initramfs.cpio: $(OUT)/cml $(OUT)/x86_64/stage0 $(OUT)/x86_64/loader $(OUT)/kernel/vmlinuz $(INITRAMFS)
	$(BUN) initramfs/build.ts

$(OUT)/test/initramfs.cpio: $(OUT)/initramfs.cpio test/machine/agent.ts test/machine/volumes.ts test/machine/search.ts test/machine/keypad.ts test/memory.ts test/machine/daemons.json
	$(BUN) initramfs/build.ts --test

.PHONY: image
image: $(OUT)/$(if $(TEST),test/)initramfs.cpio ## build the ramdisk out/initramfs.cpio and list its files (TEST=1: with the test agent)
	@$(if $(TEST),,cat $(OUT)/initramfs.files; echo "test agent: absent"; ls -l $<)

.PHONY: hot
hot: $(OUT)/initramfs.cpio $(OUT)/guests/core0-1.conf ## after a change of the runtime: find anew the pages that a boot needs of it (writes initramfs/hot.x86_64)
	$(BUN) initramfs/build.ts --cold
	$(BUN) test/machine/hot.ts

$(OUT)/disk.img: initramfs/image.ts initramfs/seed.ts initramfs/pki.ts $(OUT)/guests/core0-1.sig $(OUT)/guests/debian-1.sig
	$(BUN) initramfs/image.ts $@ 2048

.PHONY: run
run: $(OUT)/initramfs.cpio $(OUT)/disk.img ## boot the machine in QEMU with core0's console here (Ctrl-A x leaves it)
	$(BUN) initramfs/run.ts

.PHONY: man
man: node_modules/.ready proto/gen/proto.js ## write the manual pages in out/man/
	$(BUN) src/man.ts $(OUT)/man

# --- guests ------------------------------------------------------------------

GUESTS := core0 debian busybox classic
.PHONY: guests
guests: $(GUESTS:%=$(OUT)/guests/%-1.sig) ## build the guests core0, debian, busybox and classic in out/guests/, and sign them with out/pki

define GUEST
$(OUT)/guests/$(1)-1.conf: initramfs/guests.ts initramfs/packages.ts src/guestos/image.ts src/sys/verity.ts src/lib/text.ts \
		$$(shell find initramfs/files/$(1) -type f 2>/dev/null) | proto/gen/proto.js $(OUT)/tools.ready
	$(BUN) initramfs/guests.ts $(1)
endef
$(foreach g,$(GUESTS),$(eval $(call GUEST,$(g))))

# Keys of this working copy's developer, made once. A product's keys lie elsewhere.
$(OUT)/pki/ssig_cml.key: | proto/gen/proto.js $(OUT)/run.so
	$(BUN) src/main.ts pki init --key ec:P-256 $(OUT)/pki

$(OUT)/guests/%.sig: $(OUT)/guests/%.conf $(OUT)/pki/ssig_cml.key
	$(BUN) src/main.ts guestos sign --key $(OUT)/pki/ssig_cml.key --cert $(OUT)/pki/ssig_cml.cert $<

.PHONY: licenses
licenses: image guests ## write out/licenses.json and docs/LICENSES.md: what is in the machine, and under which licence
	$(BUN) initramfs/licenses.ts

# --- hosted mode ---------------------------------------------------------------

.PHONY: hosted
hosted: $(OUT)/cml $(OUT)/guests/busybox-1.sig ## run cmld on this machine, in the foreground, with a demo container (root)
	@$(BUN) initramfs/hosted.ts

.PHONY: deb
deb: $(OUT)/$(if $(filter $(HOST),$(ARCH)),,$(ARCH)/)cml ## build the Debian package of hosted mode in out/ (out/aarch64/ with ARCH=aarch64)
	$(BUN) debian/build.ts $< $(ARCH)

# --- checks and tests --------------------------------------------------------

.PHONY: check
check: node_modules/.ready proto/gen/proto.js $(OUT)/run.so $(OUT)/cservice ## formatter, linter, types and the house's own rules
	node_modules/.bin/biome check --error-on-warnings src ffi proto initramfs test package.json tsconfig.json biome.json
	node_modules/.bin/tsc
	$(BUN) test test/style.test.ts

.PHONY: test
test: check $(OUT)/test/initramfs.cpio $(if $(filter x86_64,$(HOST)),$(OUT)/aarch64/cml $(OUT)/aarch64/stage0) guests deb $(OUT)/attack $(OUT)/storm ## everything above and below, at counts that fit CI (35 minutes)
	$(BUN) test/run.ts unit host escape machine

.PHONY: test-unit
test-unit: node_modules/.ready proto/gen/proto.js $(OUT)/run.so $(OUT)/cservice ## pure functions, printed programs, codecs
	$(BUN) test/run.ts unit

.PHONY: test-host
test-host: $(OUT)/cml $(OUT)/aarch64/cservice guests deb $(OUT)/attack $(OUT)/storm ## real namespaces, mounts, cgroups and sockets on this machine (root)
	$(BUN) test/run.ts host

.PHONY: bench-protobuf
bench-protobuf: node_modules/.ready proto/gen/proto.js ## our protobuf codec beside protobufjs (docs/decisions/protobuf.md)
	$(BUN) test/bench/protobuf.ts

.PHONY: bench
bench: $(OUT)/cml $(OUT)/tools.ready $(OUT)/test/initramfs.cpio guests $(OUT)/attack ## ours beside crun, runc and busybox, alternating; memory; writes out/bench.json (root)
	test/bench/cgroup2.sh $(BUN) test/bench/main.ts
	$(BUN) test/bench/hash.ts
	$(BUN) test/bench/boot.ts
	$(BUN) test/bench/machine.ts
	$(BUN) test/bench/verity.ts
	$(BUN) test/bench/noisy.ts
	$(BUN) test/bench/crypt.ts
	$(BUN) test/bench/limits.ts

.PHONY: soak soak-leak soak-crash soak-hotplug soak-power soak-tamper soak-fuzz
soak: soak-leak soak-crash soak-hotplug soak-power soak-tamper soak-fuzz ## the tests with the large counts, in six parts; results are added to docs/soak.md
soak-leak: $(OUT)/cml $(OUT)/test/initramfs.cpio guests $(OUT)/attack ## hundreds of starts and stops, thousands of requests: nothing is left, nothing grows
	CML_SOAK=1 $(BUN) test/run.ts leak leakmachine races
soak-crash: $(OUT)/cml $(OUT)/test/initramfs.cpio guests $(OUT)/attack $(OUT)/storm ## cmld and PID 1 killed again and again: nothing is lost
	CML_SOAK=1 $(BUN) test/run.ts crash crashinit
soak-hotplug: $(OUT)/cml $(OUT)/test/initramfs.cpio guests ## cards and USB devices plugged in and out 100 times while containers start and stop
	CML_SOAK=1 $(BUN) test/run.ts hotplug hotplugmachine
soak-power: $(OUT)/test/initramfs.cpio guests ## power cuts: real ones, and disks rebuilt as they were at 200 moments
	CML_SOAK=1 $(BUN) test/run.ts power powermachine
soak-tamper: $(OUT)/test/initramfs.cpio guests ## sectors of a sealed volume changed and tags forged: never wrong data
	CML_SOAK=1 $(BUN) test/run.ts tampermachine
soak-fuzz: $(OUT)/cml guests $(OUT)/attack $(OUT)/storm ## 60 s of broken bytes for each parser, fixed seed
	CML_SOAK=1 $(BUN) test/run.ts fuzz

.PHONY: test-machine
test-machine: $(OUT)/test/initramfs.cpio guests $(OUT)/attack ## boot the real ramdisk in QEMU and look at it
	$(BUN) test/run.ts machine

.PHONY: test-escape
test-escape: $(OUT)/test/initramfs.cpio $(OUT)/guests/core0-1.sig $(OUT)/attack ## attacks from inside a container, on this machine and in QEMU (root)
	$(BUN) test/run.ts escape

.PHONY: clean
clean: ## remove everything that was built (not node_modules)
	rm -rf $(OUT) proto/gen
