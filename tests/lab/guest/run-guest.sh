#!/bin/bash
# run-guest.sh [-n] DIR - start the guest of make-guest.sh, in the background, with its state in DIR.
#   -n   start nothing: print QEMU's command line, every argument ended by a zero byte
#   DIR/disk0.qcow2, disk1.qcow2     copied from the template if absent (nodes disk0, disk1; devices vd0, vd1)
#   DIR/qmp.sock, monitor.sock       two QMP monitors            DIR/agent.sock   the guest agent
#   DIR/serial.sock (+serial.log)    a root shell, by lines      DIR/hb.sock      heartbeats     DIR/pid
# Environment: GUEST=OUTDIR of make-guest.sh (required), QEMU=program, NAME=guest, NDISKS=2, MEM=192, SMP=1, MACHINE=pc, CPU=max,
#   W=<us>|off (writer), HB=<us>|off (heartbeat), GA=on|off (agent), APPEND=<kernel arguments>,
#   BLOCKOPTS=<,more -blockdev options>, IOTHREAD=1, DISK0=<file> DISK1=<file>: boot these instead
set -euo pipefail
print=; [ "${1:-}" != -n ] || { print=1; shift; }
D=$(mkdir -p "${1:?usage: run-guest.sh [-n] DIR}" && cd "$1" && pwd)
GUEST=${GUEST:?GUEST must name the directory that make-guest.sh filled}; NDISKS=${NDISKS:-2}
KERNEL=$GUEST/vmlinux; [ -e "$KERNEL" ] || KERNEL=$GUEST/vmlinuz
E=${D//,/,,}
# initcall_blacklist, cryptomgr.notests: seconds of boot under TCG that no test needs
args=("${QEMU:-qemu-system-x86_64}" -name "${NAME:-guest},debug-threads=on" -nodefaults -no-user-config -display none -no-reboot
  -machine "${MACHINE:-pc}" -accel tcg -cpu "${CPU:-max}" -smp "${SMP:-1}" -m "${MEM:-192}"
  -kernel "$KERNEL" -initrd "$GUEST/initrd"
  -append "console=ttyS0 quiet loglevel=3 panic=-1 nokaslr mitigations=off random.trust_cpu=on tsc=reliable cryptomgr.notests=1 initcall_blacklist=crypto_kdf108_init,cubictcp_register,init_kprobe_trace,load_system_certificate_list,slab_sysfs_init w=${W:-2000} hb=${HB:-off} ga=${GA:-on} ${APPEND:-}"
  -qmp "unix:$E/qmp.sock,server=on,wait=off" -qmp "unix:$E/monitor.sock,server=on,wait=off"
  -chardev "socket,id=ser,path=$E/serial.sock,server=on,wait=off,logfile=$E/serial.log" -serial chardev:ser
  -device virtio-serial-pci,id=vs0
  -chardev "socket,id=qga,path=$E/agent.sock,server=on,wait=off" -device virtserialport,bus=vs0.0,chardev=qga,name=org.qemu.guest_agent.0
  -chardev "socket,id=hb,path=$E/hb.sock,server=on,wait=off"   -device virtserialport,bus=vs0.0,chardev=hb,name=org.qmpsnap.hb)
for ((i = 0; i < NDISKS; i++)); do
    v="DISK$i"; f=${!v:-$D/disk$i.qcow2}; io=
    [ -n "${!v:-}" ] || [ -e "$f" ] || cp --sparse=always "$GUEST/disk.qcow2" "$f"
    [ -z "${IOTHREAD:-}" ] || { args+=(-object "iothread,id=io$i"); io=",iothread=io$i"; }
    args+=(-blockdev "driver=qcow2,node-name=disk$i,file.driver=file,file.filename=${f//,/,,},file.node-name=disk$i-file${BLOCKOPTS:-}"
           -device "virtio-blk-pci,id=vd$i,drive=disk$i$io")
done
if [ -n "$print" ]; then printf '%s\0' "${args[@]}"; exit; fi
rm -f "$D"/*.sock "$D/pid"
exec "${args[@]}" -daemonize -pidfile "$D/pid"
