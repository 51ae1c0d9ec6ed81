#!/bin/bash
# trixie-qemu.sh DIR OUT - run the QEMU of another Debian on this host, without a chroot.
#   DIR   a tree that debootstrap filled, with qemu-system-x86 and qemu-utils in it (see README.md)
#   OUT   is written: a program that runs DIR's qemu-system-x86_64. DIR's qemu-img and qemu-io come beside it.
# They run with DIR's dynamic loader and libraries, so paths, pids and sockets are the host's.
set -euo pipefail
DIR=$(cd "${1:?usage: trixie-qemu.sh DIR OUT}" && pwd); OUT=${2:?usage: trixie-qemu.sh DIR OUT}
LOADER=$DIR/lib64/ld-linux-x86-64.so.2; LIBRARIES=$DIR/lib/x86_64-linux-gnu:$DIR/usr/lib/x86_64-linux-gnu
[ -x "$DIR/usr/bin/qemu-system-x86_64" ] || { echo "trixie-qemu.sh: no qemu-system-x86_64 in $DIR" >&2; exit 1; }
BESIDE=$(mkdir -p "$(dirname "$OUT")" && cd "$(dirname "$OUT")" && pwd)
wrap() { # WRAPPER PROGRAM [ARGUMENT...]
    local wrapper=$BESIDE/$1 program=$DIR/usr/bin/$2; shift 2
    local line=(env "QEMU_MODULE_DIR=$DIR/usr/lib/x86_64-linux-gnu/qemu"
                "$LOADER" --library-path "$LIBRARIES" --argv0 "$program" "$program" "$@")
    { echo '#!/bin/bash'; printf 'exec'; printf ' %q' "${line[@]}"; echo ' "$@"'; } > "$wrapper.new"
    chmod 755 "$wrapper.new"; mv "$wrapper.new" "$wrapper"      # a running wrapper keeps its old file
}
wrap "$(basename "$OUT")" qemu-system-x86_64 -L "$DIR/usr/share/qemu" -L "$DIR/usr/share/seabios" -L "$DIR/usr/lib/ipxe/qemu"
wrap qemu-img qemu-img
wrap qemu-io qemu-io
