#!/bin/bash
# make-guest.sh OUTDIR - build a tiny real Linux guest, from packages of Debian 12 only.
#   OUTDIR/vmlinux   Debian's cloud kernel, uncompressed (boots through its PVH entry; vmlinuz if that fails)
#   OUTDIR/initrd    busybox, perl-base, qemu-ga, virtio modules, the marker writer
#   OUTDIR/disk.qcow2  a template disk: ext4, empty
# The guest's packages are downloaded and unpacked, never installed. Missing tools of the host are installed,
# which needs root; nothing else does. Prints nothing when all is up to date. REBUILD=1 builds anyway.
set -euo pipefail
export LC_ALL=C SOURCE_DATE_EPOCH=1700000000
OUT=$(mkdir -p "${1:?usage: make-guest.sh OUTDIR}" && cd "$1" && pwd)
HERE=$(cd "$(dirname "$0")" && pwd)
PATH=$PATH:/usr/sbin:/sbin
fail() { echo "make-guest.sh: $*" >&2; exit 1; }
exec 9> "$OUT/.lock"; flock 9                 # test runs share one OUTDIR

command -v apt-get >/dev/null || fail "needs Debian: no apt-get here"

# --- 1. the host's tools ----------------------------------------------------------------
need=()
tool() { command -v "$1" >/dev/null || need+=("$2"); }
tool qemu-system-x86_64 qemu-system-x86
tool qemu-img qemu-utils
tool mke2fs e2fsprogs
tool debugfs e2fsprogs
tool cpio cpio
tool xz xz-utils
tool lz4 lz4
if [ ${#need[@]} -gt 0 ]; then
    [ "$(id -u)" = 0 ] || fail "needs root to install ${need[*]}"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}"; } \
        > "$OUT/install.log" 2>&1 || { tail -5 "$OUT/install.log" >&2; fail "cannot install ${need[*]}"; }
fi

# --- 2. the guest's packages ------------------------------------------------------------
mkdir -p "$OUT/dl"; cd "$OUT/dl"
kernel() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -1; }
kpkg=$(kernel) || true
[ -n "$kpkg" ] || { apt-get update -qq || true; kpkg=$(kernel) || true; }
[ -n "$kpkg" ] || fail "the package lists have no linux-image-cloud-amd64"
PKGS=("$kpkg" busybox-static perl-base qemu-guest-agent
      libc6 libcrypt1 libglib2.0-0 libpcre2-8-0 libnuma1 libudev1 liburing2)
policy=$(apt-cache policy "${PKGS[@]}")
for p in "${PKGS[@]}"; do grep -q "^$p:" <<< "$policy" || fail "the package lists have no $p: is this Debian 12?"; done
stamp=$( { grep -E '^[a-z]|Candidate' <<< "$policy"; cat "$HERE"/make-guest.sh "$HERE"/files/*; } | sha256sum | cut -c1-16)
[ -n "${REBUILD:-}" ] || [ "$(cat "$OUT/stamp" 2>/dev/null)" != "$stamp" ] || exit 0
rm -f "$OUT/stamp"
echo "building the test guest in $OUT"
want=$(awk '/^[a-z]/{p=$1; sub(":","",p)} /Candidate:/{v=$2; gsub(":","%3a",v); print p "_" v "_amd64.deb"}' <<< "$policy")
miss=(); for f in $want; do [ -s "$f" ] || { rm -f "${f%%_*}"_*.deb; miss+=("${f%%_*}"); }; done
fetch() { apt-get download -qq "${miss[@]}" 2> "$OUT/download.log"; }
[ ${#miss[@]} = 0 ] || fetch || { apt-get update -qq; fetch; } || { cat "$OUT/download.log" >&2; fail "cannot download ${miss[*]}"; }
R="$OUT/root"; I="$OUT/ird"; rm -rf "$R" "$I"; mkdir -p "$R" "$I"
dpkg-deb --fsys-tarfile "$kpkg"_*.deb | tar -x -C "$R" --wildcards './boot/vmlinuz*' \
    './lib/modules/*/kernel/drivers/virtio/*' './lib/modules/*/kernel/drivers/block/virtio_blk*' \
    './lib/modules/*/kernel/drivers/char/virtio_console*' './lib/modules/*/kernel/drivers/scsi/*' './lib/modules/*/kernel/net/core/failover*'
for p in "${PKGS[@]:1}"; do dpkg-deb -x "$p"_*.deb "$R"; done

# --- 3. the initramfs -------------------------------------------------------------------
cd "$I"
mkdir -p bin sbin usr/bin usr/sbin lib64 lib/x86_64-linux-gnu usr/lib/x86_64-linux-gnu lib/modules proc sys dev run tmp etc/qemu d0 d1 d2 d3
install -m755 "$R/bin/busybox" bin/busybox
for a in $("$R/bin/busybox" --list); do [ "$a" = busybox ] || ln -sf busybox "bin/$a"; done
install -m755 "$R/usr/sbin/qemu-ga" usr/sbin/qemu-ga
install -m755 "$R/usr/bin/perl" usr/bin/perl
P=usr/lib/x86_64-linux-gnu/perl-base; mkdir -p $P
for m in strict.pm warnings.pm; do install -m644 "$R/$P/$m" $P/; done
LD="$R/lib64/ld-linux-x86-64.so.2"; [ -e "$LD" ] || LD=$(echo "$R"/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2)
LP="$R/lib/x86_64-linux-gnu:$R/usr/lib/x86_64-linux-gnu"
for b in usr/sbin/qemu-ga usr/bin/perl; do "$LD" --library-path "$LP" --list $b; done |
    sed -n 's/.*=> \(\/[^ ]*\).*/\1/p' | sort -u | while read -r l; do install -m755 "$(readlink -f "$l")" "lib/x86_64-linux-gnu/$(basename "$l")"; done
install -m755 "$(readlink -f "$LD")" lib64/ld-linux-x86-64.so.2
for m in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk virtio_console virtio_scsi; do
    f=$(find "$R/lib/modules" -name "$m.ko*" | head -1); [ -n "$f" ] || continue
    case $f in *.xz) xz -dc "$f" > lib/modules/$m.ko;; *) cp "$f" lib/modules/$m.ko;; esac
    # drop the appended signature: checking it costs about 0.3 s per module under TCG; an unsigned module only taints
    perl -e 'local $/; open F,"+<",$ARGV[0]; binmode F; $_=<F>; my $m="~Module signature appended~\n";
             if (substr($_,-28) eq $m) { truncate F, length($_)-28-12-unpack("N",substr($_,-32,4)) }' lib/modules/$m.ko
done
install -m755 "$HERE/files/init" init
for f in writer hb; do rm -f bin/$f; install -m755 "$HERE/files/$f" bin/$f; done
install -m755 "$HERE/files/fsfreeze-hook" etc/qemu/fsfreeze-hook
echo "root:x:0:0:root:/:/bin/sh" > etc/passwd
find . -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
find . -print0 | sort -z | cpio -0 -o -H newc --reproducible -R 0:0 --quiet > "$OUT/initrd"     # uncompressed: TCG pays for inflating

# --- 4. the kernel ----------------------------------------------------------------------
cp "$R"/boot/vmlinuz-* "$OUT/vmlinuz"
# an uncompressed ELF needs neither the BIOS's Linux loader nor decompression under TCG
off=$(grep -abo -m1 $'\x02\x21\x4c\x18' "$OUT/vmlinuz" | head -1 | cut -d: -f1) || true
[ -z "$off" ] || tail -c +$((off + 1)) "$OUT/vmlinuz" | lz4 -d -l -q - - > "$OUT/vmlinux" 2>/dev/null || true
[ "$(head -c 4 "$OUT/vmlinux" 2>/dev/null | tail -c 3)" = ELF ] || rm -f "$OUT/vmlinux"

# --- 5. the template disk: same bytes every time; no mount, no loop device ----------------
rm -f "$OUT/disk.raw"; truncate -s 256M "$OUT/disk.raw"
E2FSPROGS_FAKE_TIME=$SOURCE_DATE_EPOCH mke2fs -q -t ext4 -b 4096 -m 0 -J size=8 \
    -E lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,hash_seed=11111111-2222-3333-4444-555555555555 \
    -U 11111111-2222-3333-4444-555555555555 "$OUT/disk.raw"
qemu-img convert -q -O qcow2 "$OUT/disk.raw" "$OUT/disk.qcow2"
rm -rf "$OUT/disk.raw" "$R" "$I"
echo "$stamp" > "$OUT/stamp"
