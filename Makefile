# make help lists the targets. Those that install need root (or what they install to be there already).
.PHONY: help demo check test bench venv tools guest

PYTHON = .venv/bin/python
export DEBIAN_FRONTEND = noninteractive

help:
	@echo "make demo   install QEMU and qmpsnap (.venv), and snapshot a small real guest while it writes"
	@echo "make check  install what the tests need, and run every test"
	@echo "make test   run every test with what is there; the rest is skipped with its reason"
	@echo "make bench  speed and memory as ratios against raw QMP (and virsh, where libvirt is)"

demo: tools venv
	$(PYTHON) -m tests.lab.demo

check: tools libvirt venv
	QMPSNAP_REQUIRE=$${QMPSNAP_REQUIRE-qemu,guest,libvirt} $(PYTHON) -m pytest

test: venv
	$(PYTHON) -m pytest

bench: tools venv
	$(PYTHON) -m tests.bench

# What is missing, and only then: apt-get needs root and a minute.
tools:
	@sh tests/lab/install.sh python3-venv:python3 qemu-system-x86:qemu-system-x86_64 qemu-utils:qemu-img \
	    e2fsprogs:mke2fs cpio:cpio xz-utils:xz lz4:lz4

libvirt:
	@sh tests/lab/install.sh libvirt-daemon-system:libvirtd libvirt-clients:virsh systemd:systemd-analyze

venv: .venv/installed

.venv/installed: pyproject.toml
	python3 -m venv .venv
	$(PYTHON) -m pip install --quiet --upgrade pip
	$(PYTHON) -m pip install --quiet --editable '.[test]'
	touch $@
