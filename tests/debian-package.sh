#!/bin/bash
# Installs, uses and removes the Debian package. Run it with scripts/vm: debian-package.sh FILE.deb
set -u

package=${1:?name the package}
[[ -n ${VM_SHARE-} ]] || { echo "debian-package.sh: run it with scripts/vm" >&2; exit 2; }
fail() { echo "FAILED: $*" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive

echo "-- install"
dpkg -i "$package" || fail "dpkg -i"
for program in nbd-ctl nbd-kernel-holder nbd-serve; do
	[[ $(command -v "$program") == /usr/bin/$program ]] || fail "$program is not the package's"
	"$program" --version || fail "$program"
done
getent passwd nbd-serve >/dev/null || fail "no user nbd-serve"
man -w nbd-ctl-attach nbd-ctl-devices nbd-backend-protocol >/dev/null || fail "a man page is missing"
for file in bash-completion/completions/nbd-ctl zsh/vendor-completions/_nbd-ctl fish/vendor_completions.d/nbd-ctl.fish; do
	[[ -s /usr/share/$file ]] || fail "no $file"
done
for file in README.md changelog.gz changelog.Debian.gz copyright book/guide/first-device.md book/pictures/processes.svg \
	examples/c/backend.c examples/python/backend.py; do
	[[ -s /usr/share/doc/nbd-ctl/$file ]] || fail "no $file among the documents"
done
systemd-analyze verify /usr/lib/systemd/system/nbd-{holder@x.service,serve@x.service,serve@x.socket} || fail "the units"

echo "-- use"
printf '[disk]\nexport = "mem:16M"\nuser = "nbd-serve"\n' >>/etc/nbd-ctl/devices.toml
nbd-ctl check-config || fail "check-config"
device=$(nbd-ctl attach disk) || fail "attach"
head -c 1M /dev/urandom >/tmp/data
dd if=/tmp/data of="$device" conv=fsync status=none || fail "writing"
pid=$(nbd-ctl status disk --json | jq .backend.pid)
[[ $(stat -c %U "/proc/$pid") == nbd-serve ]] || fail "the backend runs as somebody else"
kill -9 "$pid"
dd if="$device" iflag=direct bs=1M count=1 status=none | cmp - /tmp/data || fail "the data"

echo "-- remove"
! dpkg -r nbd-ctl || fail "removed although a device is attached"
nbd-ctl detach disk || fail "detach"
dpkg -r nbd-ctl || fail "dpkg -r"
[[ ! -e /usr/bin/nbd-ctl ]] || fail "nbd-ctl is left"
[[ -e /etc/nbd-ctl/devices.toml ]] || fail "the configuration is gone before the purge"
dpkg -P nbd-ctl || fail "dpkg -P"
[[ ! -e /etc/nbd-ctl ]] || fail "the configuration is left"
[[ ! -e /usr/share/doc/nbd-ctl ]] || fail "documents are left"
! compgen -G '/run/nbd/*' || fail "logs are left"
echo "all is well"
