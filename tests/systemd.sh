#!/bin/bash
# The service, the udev rules and the file with devices, under a systemd of the machine's own.
# Run it with scripts/vm, which gives it a machine to boot systemd in.
set -u

bin=${NBD_BIN_DIR:?set it to the directory with nbd-ctl, nbd-kernel-holder and nbd-serve}
[[ -n ${VM_SHARE-} ]] || { echo "systemd.sh: run it with scripts/vm" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
log=/run/systemd.log
export XDG_RUNTIME_DIR=/run SYSTEMD_COLORS=0 SYSTEMD_PAGER=

fail() {
	echo "FAILED: $*" >&2
	systemctl status --no-pager -n 0 'nbd-holder@*' 'nbd-serve@*' >&2
	tail -n 40 "$log" >&2
	cat /run/nbd/nbd*/log 2>/dev/null >&2
	exit 1
}
step() { echo "-- $*"; }
# Only a hang meets the limit.
until_true() {
	local what=$1 end=$((SECONDS + 240))
	shift
	while [[ $SECONDS -lt $end ]]; do
		"$@" >/dev/null 2>&1 && return
		sleep 0.1
	done
	fail "not within 240 s: $what"
}

boot() {
	mount -t cgroup2 none /sys/fs/cgroup || exit 1
	unshare --pid --mount --fork --mount-proc --kill-child setsid env -i container=other "PATH=$PATH" \
		/lib/systemd/systemd --system --unit=basic.target --log-target=console --show-status=0 \
		</dev/null >"$log" 2>&1 &
	until_true "systemd runs" sh -c 'systemctl is-system-running | grep -qE "running|degraded"'
	until_true "udev runs" systemctl start systemd-udevd.service
}

install_files() {
	install -m 755 "$bin"/nbd-{ctl,kernel-holder,serve} /usr/bin
	install -m 644 -D "$here/packaging/59-nbd-ctl.rules" /usr/lib/udev/rules.d/59-nbd-ctl.rules
	install -m 644 -D -t /usr/lib/systemd/system "$here"/packaging/*@.service "$here"/packaging/*@.socket
	mkdir -p /etc/nbd-ctl /srv
	cat >/etc/nbd-ctl/devices.toml <<-TOML
		[disk]
		export = "file:/srv/disk.img,create=64M"
		kernel-api = "$1"

		[root]
		export = "mem:16M"
		kernel-api = "$1"
		survive-shutdown = true

		[never]
		export = "file:/srv/no/such/file"
		auto = false
	TOML
	systemctl daemon-reload
	udevadm control --reload
}

unit_pid() { systemctl show -P MainPID "nbd-holder@$1"; }
field() { nbd-ctl status "$1" --json | jq -r "$2"; }
is() { [[ $1 == "$2" ]] || fail "$3: '$1' and not '$2'"; }

starts_when_ready() {
	step "start returns when the device can be used, and it has its link ($1)"
	systemctl start nbd-holder@disk || fail "start"
	is "$(readlink -f /dev/disk/by-nbd/disk)" "$(field disk .path)" "the link"
	is "$(blockdev --getsize64 /dev/disk/by-nbd/disk)" $((64 << 20)) "the size"
	is "$(unit_pid disk)" "$(field disk .holder_pid)" "the main process"
	[[ $(systemctl show -P StatusText nbd-holder@disk) == "holds /dev/nbd"* ]] || fail "the status text"
	dd if=/dev/urandom of=/srv/data bs=1M count=8 status=none
	dd if=/srv/data of=/dev/disk/by-nbd/disk conv=fsync status=none || fail "writing"
}

# The last entry of this event, as JSON; empty if there is none.
event() { journalctl -o json -n 1 --no-pager "NBD_EVENT=$1" 2>/dev/null; }
is_logged() { [[ -n $(event "$1") ]]; }

logs_to_the_journal() {
	step "the journal has events with their fields"
	until_true "an entry" is_logged ready
	is "$(event ready | jq -r '.NBD_DEVICE, .NBD_SIZE, .PRIORITY, .SYSLOG_IDENTIFIER' | xargs)" \
		"$(field disk .device) $((64 << 20)) 6 nbd-kernel-holder" "ready"
	local backend
	backend=$(field disk .backend.pid)
	kill -KILL "$backend"
	nbd-ctl wait disk || fail "no other backend"
	until_true "an entry" is_logged recovered
	is "$(event backend-lost | jq -r '.NBD_PID, .NBD_SIGNAL, .PRIORITY' | xargs)" "$backend SIGKILL 4" "the loss"
	is "$(event recovered | jq -r '.NBD_PID')" "$(field disk .backend.pid)" "the recovery"
}

resizes() {
	step "udev hears of another size"
	local device
	device=$(field disk .device)
	udevadm monitor --kernel --property --subsystem-match=block >/run/events 2>&1 &
	local monitor=$!
	until_true "the monitor" grep -q "KERNEL" /run/events
	truncate -s 80M /srv/disk.img
	nbd-ctl resize disk --to-backend || fail "resize"
	is "$(blockdev --getsize64 "/dev/$device")" $((80 << 20)) "the size"
	until_true "an event" grep -q "RESIZE=1" /run/events
	kill $monitor
	udevadm settle
	is "$(readlink -f /dev/disk/by-nbd/disk)" "/dev/$device" "the link"
	nbd-ctl resize disk 64M || fail "shrink"
}

survives_its_holder() {
	step "a killed holder is replaced, and nobody notices"
	local first sitter
	first=$(unit_pid disk) sitter=$(field disk .sitter_pid)
	systemctl kill --kill-whom=main -s KILL nbd-holder@disk
	# shellcheck disable=SC2016
	until_true "another holder" sh -c '[ "$(systemctl show -P MainPID nbd-holder@disk)" != '"$first"' ] &&
		systemctl is-active nbd-holder@disk && nbd-ctl status disk'
	is "$(field disk .sitter_pid)" "$sitter" "the sitter"
	dd if=/dev/disk/by-nbd/disk iflag=direct bs=1M count=8 status=none | cmp - /srv/data || fail "the data"
}

refuses_while_mounted() {
	step "stopping a mounted device leaves it alone"
	mkfs.ext4 -q /dev/disk/by-nbd/disk || fail "mkfs"
	udevadm settle
	mkdir -p /mnt/disk
	mount /dev/disk/by-nbd/disk /mnt/disk || fail "mount"
	echo hallo >/mnt/disk/file
	systemctl stop nbd-holder@disk
	is "$(cat /mnt/disk/file)" hallo "the file"
	sync -f /mnt/disk/file || fail "sync"
	umount /mnt/disk || fail "umount"
	[[ -n $(field disk .device) ]] || fail "the device is gone"
	systemctl reset-failed nbd-holder@disk
	# The next start adopts it.
	systemctl start nbd-holder@disk || {
		# Or a status that looked at it already has.
		nbd-ctl detach disk && systemctl reset-failed nbd-holder@disk && systemctl start nbd-holder@disk
	} || fail "start again"
}

stops_in_order() {
	step "stopping detaches, and udev lets go"
	local device
	device=$(field disk .device)
	systemctl stop nbd-holder@disk || fail "stop"
	is "$(systemctl show -P Result nbd-holder@disk)" success "the result"
	is "$(cat "/sys/block/$device/size")" 0 "the size"
	udevadm settle
	[[ ! -e /dev/disk/by-nbd/disk ]] || fail "its link is left"
	[[ ! -e /run/nbd/$device ]] || fail "its entry is left"
	until_true "an entry" is_logged detached
	[[ $(event detached | jq -r .NBD_READS) -gt 0 ]] || fail "totals without the test read"
	! compgen -G "/run/udev/watch/b$(cat "/sys/block/$device/dev")" >/dev/null || fail "its watch is left"
}

detached_by_name() {
	step "a device of a unit that is detached by name leaves its unit in order"
	systemctl start nbd-holder@disk || fail "start"
	nbd-ctl detach disk || fail "detach by name"
	# shellcheck disable=SC2016  # for that shell
	until_true "the unit is inactive" sh -c '[ "$(systemctl show -P ActiveState nbd-holder@disk)" = inactive ]'
	is "$(systemctl show -P Result nbd-holder@disk)" success "the result"
	if ! { systemctl start nbd-holder@disk && systemctl stop nbd-holder@disk; }; then fail "start and stop again"; fi
}

fails_with_words() {
	step "a device that cannot be fails at once"
	! systemctl start nbd-holder@never 2>/dev/null || fail "it started"
	is "$(systemctl show -P ExecMainStatus nbd-holder@never)" 1 "the status without a file"
	! systemctl start nbd-holder@nameless 2>/dev/null || fail "a device without entry started"
	is "$(systemctl show -P ExecMainStatus nbd-holder@nameless)" 3 "the status without an entry"
}

can_outlive_systemd() {
	step "processes of a device with the root filesystem are called so that systemd spares them"
	systemctl start nbd-holder@root || fail "start"
	local pid
	for pid in $(field root '.holder_pid, .sitter_pid, .backend.pid'); do
		[[ $(tr '\0' ' ' <"/proc/$pid/cmdline") == @* ]] || fail "process $pid is called $(tr '\0' ' ' <"/proc/$pid/cmdline")"
	done
	systemctl stop nbd-holder@root || fail "stop"
}

attaches_all() {
	step "attach --all"
	nbd-ctl check-config >/dev/null || fail "check-config"
	is "$(nbd-ctl attach --all | wc -l)" 2 "attached"
	is "$(nbd-ctl attach --all | wc -l)" 0 "attached again"
	nbd-ctl detach root || fail "detach by name"
	nbd-ctl detach --all || fail "detach --all"
}

serves_the_network() {
	step "clients start a server by its socket, which systemd keeps"
	local socket=/run/nbd-serve/net.sock uri pid
	uri="nbd+unix:///?socket=$socket"
	printf '%s\n' 'EXPORTS="mem:1M small=mem:64K"' 'OPTIONS=--read-only' >/etc/nbd-ctl/serve-net.conf
	systemctl start nbd-serve@net.socket || fail "the socket"
	! systemctl -q is-active nbd-serve@net || fail "it runs before anybody asks for it"
	is "$(timeout 60 nbdinfo --size "$uri")" 1048576 "the size"
	systemctl -q is-active nbd-serve@net || fail "it does not run"
	[[ $(systemctl show -P StatusText nbd-serve@net) == "serving mem:1M, small=mem:64K on unix:$socket" ]] ||
		fail "the status text: $(systemctl show -P StatusText nbd-serve@net)"
	timeout 60 nbdinfo --is read-only "$uri" || fail "its options"
	pid=$(systemctl show -P MainPID nbd-serve@net)
	systemctl stop nbd-serve@net || fail "stop"
	is "$(systemctl show -P Result nbd-serve@net)" success "the result"
	is "$(timeout 60 nbdinfo --size "nbd+unix:///small?socket=$socket")" 65536 "the size after a stop"
	[[ $(systemctl show -P MainPID nbd-serve@net) != "$pid" ]] || fail "it was not started anew"
	# The removal of the package takes the servers with it.
	sh "$here/packaging/debian/prerm" remove || fail "prerm"
	! systemctl -q is-active nbd-serve@net.socket nbd-serve@net || fail "a server outlives its package"
	[[ ! -e $socket ]] || fail "the socket is left"
	echo 'EXPORTS=file:/srv/no/such/file' >/etc/nbd-ctl/serve-net.conf
	! systemctl start nbd-serve@net 2>/dev/null || fail "it started without a file"
	systemctl stop nbd-serve@net.socket nbd-serve@net
	systemctl reset-failed
}

inside() {
	install_files netlink
	serves_the_network
	for api in netlink ioctl; do
		install_files "$api"
		starts_when_ready "$api"
		logs_to_the_journal
		resizes
		survives_its_holder
		refuses_while_mounted
		stops_in_order
		detached_by_name
		can_outlive_systemd
		attaches_all
		fails_with_words
		systemctl reset-failed
		rm -f /srv/disk.img
	done
	is "$(nbd-ctl list --json)" "[]" "what is left"
	echo "all is well"
}

if [[ ${1-} != inside ]]; then
	boot
	# In systemd's own process namespace, where its numbers are right.
	systemd_pid=$(pgrep -n -f '^/lib/systemd/systemd --system')
	nsenter -t "$systemd_pid" -p -m "$here/tests/systemd.sh" inside
	exit $?
fi
inside
