#!/bin/bash
# Installs, uses and removes the Debian packages: of the programs, and of the C library.
# Run it with scripts/vm: debian-package.sh NBD-CTL.deb LIBRARY.deb DEVELOPMENT.deb
set -u

package=${1:?name the package}
shift
[[ $# -eq 2 ]] || { echo "debian-package.sh: name the two packages of the library" >&2; exit 2; }
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

echo "-- the C library"
dpkg -i "$@" || fail "dpkg -i of the library"
man -w libnbdbackend >/dev/null || fail "no man page of the library"
example=/usr/share/doc/libnbdbackend-dev/examples/mirror.c
# shellcheck disable=SC2046
cc -o /tmp/mirror "$example" $(pkg-config --cflags --libs nbdbackend) || fail "the example does not compile"
ldd /tmp/mirror | grep -q '/usr/lib.*libnbdbackend.so.0\|/lib/.*libnbdbackend.so.0' || fail "it is not linked with the package's"
truncate -s 16M /tmp/a.img /tmp/b.img
mirror=$(nbd-ctl attach -- /tmp/mirror /tmp/a.img /tmp/b.img) || fail "attach of the example"
dd if=/tmp/data of="$mirror" conv=fsync status=none || fail "writing to the example"
kill -9 "$(nbd-ctl status "$mirror" --json | jq .backend.pid)"
dd if="$mirror" iflag=direct bs=1M count=1 status=none | cmp - /tmp/data || fail "the example's data"
nbd-ctl detach "$mirror" || fail "detach of the example"
cmp /tmp/a.img /tmp/b.img || fail "the halves of the mirror differ"
dpkg -P libnbdbackend-dev libnbdbackend0 || fail "dpkg -P of the library"
[[ ! -e /usr/include/nbdbackend.h ]] || fail "the header is left"

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
