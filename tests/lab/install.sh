#!/bin/sh
# install.sh PACKAGE:PROGRAM... - installs the Debian packages whose program is missing; nothing when all are there.
set -eu
PATH=$PATH:/usr/sbin:/sbin
missing=
for pair; do
    command -v "${pair#*:}" >/dev/null 2>&1 || missing="$missing ${pair%%:*}"
done
# python3 without venv is Debian's default: the program is there, the module is not.
case " $* " in *" python3-venv:"*) python3 -c 'import ensurepip' 2>/dev/null || missing="$missing python3-venv" ;; esac
[ -z "$missing" ] && exit 0
[ "$(id -u)" = 0 ] || { echo "install.sh: as root: apt-get install$missing" >&2; exit 1; }
echo "Installing$missing"
apt-get update -qq
apt-get install -y -qq --no-install-recommends $missing >/dev/null
