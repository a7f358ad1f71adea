#!/usr/bin/env bash
# A backend without our crates (examples/python, examples/c) against the kernel's driver: killed
# under verified load, followed by itself, and then replaced by nbd-serve with requests in flight.
# Proof that docs/reference/backend-protocol.md says enough.
#
# Run it as root where the nbd driver is, for example
#   scripts/vm -t 300 -e NBD_BIN_DIR="$PWD/target/debug" -- tests/foreign-backend.sh c
# The argument: python or c.
# NBD_BIN_DIR: where nbd-ctl, nbd-kernel-holder and nbd-serve are (default: target/debug).
# NBD_KERNEL_API: ioctl (default) or netlink. KILLS: how often (default 8).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PATH=${NBD_BIN_DIR:-$here/target/debug}:$PATH
api=${NBD_KERNEL_API:-ioctl}
kills=${KILLS:-8}
size=48M

language=${1:-}
say() { printf '%s backend: %s\n' "$language" "$*"; }
fail() { say "FAILED: $*"; exit 1; }
for tool in nbd-ctl nbd-serve nbd-kernel-holder python3 fio cmp; do
	command -v "$tool" >/dev/null || fail "$tool is needed"
done
work=$(mktemp -d /dev/shm/foreign-backend.XXXXXX)
# What starts python3 may be a slow script; the holder had better start the program itself.
python=$(python3 -c 'import sys; print(sys.executable)')
# The same with a bug: it aborts when it writes at this offset.
deadly=$((40 << 20))
case $language in
python)
	program=("$python" "$here/examples/python/backend.py")
	cat >"$work/crasher.py" <<-PYTHON
		import os, sys
		sys.path.insert(0, "$here/examples/python")
		import backend
		write = os.pwritev
		os.pwritev = lambda fd, pieces, at: os.abort() if at == $deadly else write(fd, pieces, at)
		backend.main(sys.argv[1])
	PYTHON
	crasher=("$python" -B "$work/crasher.py") ;;
c)
	compile() { cc -std=c11 -O2 -Wall -Wextra -Wconversion -Werror -o "$1" "$2"; }
	compile "$work/backend" "$here/examples/c/backend.c"
	program=("$work/backend")
	cat >"$work/crasher.c" <<-C
		#define _GNU_SOURCE
		#include <stdlib.h>
		#include <sys/uio.h>
		static ssize_t deadly(int fd, const struct iovec *parts, int count, off_t at)
		{
			if (at == $deadly)
				abort();
			return pwritev(fd, parts, count, at);
		}
		#define pwritev deadly
		#include "$here/examples/c/backend.c"
	C
	compile "$work/crasher" "$work/crasher.c"
	crasher=("$work/crasher") ;;
*) fail "which one: python or c?" ;;
esac
device='' loads=()
clean_up() {
	status=$?
	if [[ $status -ne 0 && -n $device ]]; then
		nbd-ctl status "$device" || true
		tail -n 40 "${NBD_RUNTIME_DIR:-/run/nbd}/$(basename "$device")/log" || true
	fi
	[[ -z $device ]] || nbd-ctl detach --force "$device" || true
	[[ ${#loads[@]} -eq 0 ]] || wait "${loads[@]}" || true
	rm -rf "$work"
	exit "$status"
}
trap clean_up EXIT

field() { nbd-ctl status "$device" --json | "$python" -c "import json, sys; print(json.load(sys.stdin)$1)"; }
backend_pid() { nbd-ctl status "$device" | sed -n 's/^ *backend .*running, pid \([0-9]*\).*/\1/p'; }
# Rounds of writing and verifying, until there is a file $work/stop.
load() {
	until [[ -e $work/stop ]]; do
		fio --name=verify --filename="$device" --rw=randwrite --bsrange=4k-64k --size=24M \
			--ioengine=libaio --iodepth=16 --direct=1 --fsync=64 --verify=crc32c \
			--verify_fatal=1 --time_based --runtime=3 --eta=never \
			--output="$work/fio.log" || { cat "$work/fio.log"; return 1; }
	done
}
start_load() { rm -f "$work/stop"; load & loads=($!); }
end_load() {
	: >"$work/stop"
	wait "${loads[0]}" || fail "an I/O error or wrong data $1"
	loads=()
}
kill_under_load() {
	local n=0 pid old=''
	start_load
	while [[ $n -lt $kills ]]; do
		kill -0 "${loads[0]}" 2>/dev/null || break
		pid=$(backend_pid)
		if [[ -n $pid && $pid != "$old" ]]; then
			sleep "0.$((RANDOM % 10))"
			kill -9 "$pid"
			old=$pid n=$((n + 1))
		fi
	done
	end_load "while it was killed"
	say "$1 was killed $n times under load; all data verified"
}

# Stops the backend when it has taken requests and not answered them; fails if that is never so.
stop_in_the_middle() {
	local try pid
	for ((try = 0; try < 1000; try++)); do
		pid=$(backend_pid)
		[[ -n $pid ]] || continue
		kill -STOP "$pid"
		nbd-ctl status "$device" | grep -qE ' (queued|executing) ' && return
		kill -CONT "$pid"
		sleep "0.0$((RANDOM % 10))"
	done
	return 1
}

truncate -s "$size" "$work/disk.img"
device=$(nbd-ctl attach --kernel-api "$api" --restart always -- "${program[@]}" "$work/disk.img")
say "$device is served by ${program[0]##*/} over $api"

head -c 8M /dev/urandom >"$work/data"
dd if="$work/data" of="$device" bs=1M seek=32 oflag=direct conv=fsync status=none
dd if="$device" bs=1M skip=32 count=8 iflag=direct status=none | cmp - "$work/data"
say "written and read back"
nbd-ctl trace "$device" --kind write --range "$((39 << 20))+4096" --json | grep -q '"error":0.*"backend":1,' ||
	fail "the flight recorder shows no write"
say "and recorded"

kill_under_load "the backend"

start_load
stop_in_the_middle || fail "it was never stopped with a request unanswered"
nbd-ctl replace "$device" "file:$work/disk.img" --timeout 60
[[ $(field "['backend']['program'][0]") == */nbd-serve ]] || fail "nbd-serve does not serve it"
replayed=$(field "['last_recovery']['replayed']")
[[ $replayed -gt 0 ]] || fail "nbd-serve found no request unanswered"
say "nbd-serve took over and executed $replayed requests again"
stop_in_the_middle || sleep 1
nbd-ctl replace "$device" --timeout 60 -- "${program[@]}" "$work/disk.img"
say "and it took over from nbd-serve; it executed $(field "['last_recovery']['replayed']") again"
end_load "during the replacements"
kill_under_load "its successor"

nbd-ctl replace "$device" --timeout 60 -- "${crasher[@]}" "$work/disk.img"
start_load
if dd if=/dev/zero of="$device" bs=4096 count=1 seek=$((deadly / 4096)) oflag=direct status=none 2>"$work/words"; then
	fail "the write on which every backend crashes has succeeded"
fi
grep -q "Input/output error" "$work/words" || fail "the poison was answered with: $(cat "$work/words")"
[[ $(field "['poisoned'][0]['offset']") == "$deadly" ]] || fail "status does not name the poison"
[[ $(field "['poisoned'][0]['crashes']") == 3 ]] || fail "it has not crashed three backends"
end_load "beside the request that crashes backends"
nbd-ctl replace "$device" --timeout 60 -- "${program[@]}" "$work/disk.img"
say "a write on which every backend crashes gets EIO, and the others go on"

dd if="$device" bs=1M skip=32 count=8 iflag=direct status=none | cmp - "$work/data"
dd if="$device" of="$work/copy" bs=1M iflag=direct status=none
nbd-ctl detach "$device"
device=''
cmp "$work/copy" "$work/disk.img"
say "detached, and the file holds what the device held"
