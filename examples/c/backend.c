/*
 * A whole backend in C: serves a file, with one thread, requests in order.
 *
 *     cc -O2 -o backend examples/c/backend.c
 *     nbd-ctl attach -- ./backend disk.img         started by a holder
 *     NBD_JOIN=nbd0 ./backend disk.img             joins an attached device
 *
 * Kill it whenever you like: the next one, this program or nbd-serve, goes on where it was. A
 * request on which it crashes again and again gets EIO, and the others are answered.
 * docs/reference/backend-protocol.md explains why; R1 to R9 are its rules.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, SLOTS = 256, RECORDS = 4096, MOST_LANES = 16, MOST_FDS = 32, NAME = 33 };
enum { HEADER_BYTES = 28, REPLY_BYTES = 16, RECEIVE_MOST = 512 << 10, SEND_MOST = 256 << 10 };
enum { READ, WRITE, DISCONNECT, FLUSH, TRIM, CACHE, WRITE_ZEROES };
enum { FUA = 1, NO_HOLE = 2 };
/* Of the ledger's layout, which is not that of the greeting. */
enum { LEDGER_VERSION = 3 };
enum { HELLO, KEEP, READY, FAILED, POISONED };
enum { GRANT, REFUSAL, KEPT };
/* Flush, FUA, trim, write zeroes, several lanes, cache: what nbd-serve offers for a file. Only a
 * backend with the same flags can take over from another one. */
enum { FLAGS = 1 | 4 | 8 | 32 | 64 | 256 | 1024 };
#define PENDING 1

/* The ledger. It stays on this machine, so these may be structures, unlike what goes over a wire;
 * the assertions hold them to the offsets on the page. */
struct header {
	uint64_t magic;
	uint32_t version, lanes;
	uint64_t ring, transmit;
	uint32_t max_payload, flush_error;
	uint64_t generation, ready_at, first_answer_at;
};
struct record_of_call {
	uint64_t position; /* received, or sequence */
	uint64_t place;    /* base, or length */
	uint64_t amount;   /* wanted, or sent */
	uint64_t zero;
	struct mmsghdr message;
	char unused[32];
};
struct control {
	uint64_t receive_epoch, parsed, transmit_epoch, last_received_at, recorded;
	char unused[88];
	struct record_of_call receive[2], transmit[2];
	uint64_t totals[8];
};
struct slot {
	uint64_t state, cookie, offset;
	uint32_t length, kind;
	uint64_t position, received_at, started_at;
	uint32_t attempts, crashes;
};
struct flight_record {
	uint64_t cookie, offset;
	uint32_t length, kind;
	uint64_t received_at, started_at, finished_at;
	uint32_t attempts, error;
	uint64_t generation;
};
_Static_assert(offsetof(struct header, first_answer_at) == 56, "header");
_Static_assert(offsetof(struct record_of_call, message.msg_len) == 88, "mmsghdr");
_Static_assert(sizeof(struct record_of_call) == 128, "record");
_Static_assert(offsetof(struct control, receive) == 128, "receive records");
_Static_assert(offsetof(struct control, transmit) == 384, "transmit records");
_Static_assert(offsetof(struct control, totals) == 640, "totals");
_Static_assert(sizeof(struct slot) == 64 && sizeof(struct flight_record) == 64, "slots");

struct lane {
	int fd;
	bool over;
	struct control *control;
	struct slot *slots;
	struct flight_record *records;
	unsigned char *ring, *area;
	uint64_t received, base, parsed, sequence, staged;
};

static struct {
	const char *path;
	int fd;
	uint64_t size;
} file;
static struct {
	uint64_t lanes, ring, transmit, max_payload, kept, received, poison_limit;
	bool crashed; /* the predecessor did, and was not killed */
	int fds[MOST_FDS];
	char names[MOST_FDS][NAME];
} grant;
static int holder;
static struct header *header;
static struct lane lanes[MOST_LANES];

static void die(bool damaged, const char *format, ...);

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* The one store that counts. All that was stored before it is in the memory before it, and all
 * that comes later comes later: a process that is killed leaves a prefix of its stores. */
static void commit(uint64_t *word, uint64_t value)
{
	atomic_signal_fence(memory_order_seq_cst);
	atomic_store_explicit((_Atomic uint64_t *)word, value, memory_order_release);
	atomic_signal_fence(memory_order_seq_cst);
}

/* ---- the holder ---- */

struct message {
	unsigned char bytes[4096];
	size_t length, at;
};

static void put(struct message *m, uint64_t value, size_t bytes)
{
	for (; bytes; bytes--, value >>= 8)
		m->bytes[m->length++] = value & 0xff;
}

static void put_string(struct message *m, const char *text)
{
	size_t length = strnlen(text, 1024);
	put(m, length, 8);
	memcpy(m->bytes + m->length, text, length);
	m->length += length;
}

static uint64_t get(struct message *m, size_t bytes)
{
	uint64_t value = 0;
	if (m->length - m->at < bytes)
		die(false, "the holder's message is too short");
	for (size_t n = 0; n < bytes; n++)
		value |= (uint64_t)m->bytes[m->at++] << 8 * n;
	return value;
}

static void get_string(struct message *m, char *text, size_t room)
{
	uint64_t length = get(m, 8);
	if (length > m->length - m->at || length >= room)
		die(false, "the holder's message has a string that is too long");
	memcpy(text, m->bytes + m->at, length);
	text[length] = 0;
	m->at += length;
}

static void say(struct message *m, int fd)
{
	struct message head = { .length = 0 };
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int))];
	} rights = { .align = { CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS } };
	struct iovec parts[2] = { { head.bytes, 8 }, { m->bytes, m->length } };
	struct msghdr message = { .msg_iov = parts, .msg_iovlen = 2 };
	put(&head, m->length, 4);
	put(&head, fd >= 0, 4);
	if (fd >= 0) {
		memcpy(CMSG_DATA(&rights.align), &fd, sizeof(int));
		message.msg_control = &rights;
		message.msg_controllen = sizeof(rights.space);
	}
	/* A few hundred bytes go into a socket whole, or not at all. */
	if (sendmsg(holder, &message, MSG_NOSIGNAL) < 0)
		perror("backend: the holder does not listen");
}

/* Receives a message of this variant; its descriptors go to grant.fds, which has room for all. */
static struct message hear(int variant)
{
	struct message m = { .length = 0 };
	unsigned char head[8];
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(MOST_FDS * sizeof(int))];
	} rights;
	struct iovec part = { head, sizeof(head) };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1,
		.msg_control = &rights, .msg_controllen = sizeof(rights.space) };
	if (recvmsg(holder, &message, MSG_WAITALL | MSG_CMSG_CLOEXEC) != sizeof(head))
		exit((fputs("backend: the holder has closed the connection\n", stderr), 1));
	struct cmsghdr *with = CMSG_FIRSTHDR(&message);
	if (with && with->cmsg_type == SCM_RIGHTS) {
		grant.received = (with->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(grant.fds, CMSG_DATA(with), grant.received * sizeof(int));
	}
	m.length = head[0] | (size_t)head[1] << 8 | (size_t)head[2] << 16 | (size_t)head[3] << 24;
	if (m.length > sizeof(m.bytes) || m.length < 4 ||
	    recv(holder, m.bytes, m.length, MSG_WAITALL) != (ssize_t)m.length)
		exit((fputs("backend: no whole message of the holder\n", stderr), 1));
	uint64_t found = get(&m, 4);
	if (found == REFUSAL) {
		char reason[1024];
		get_string(&m, reason, sizeof(reason));
		exit((fprintf(stderr, "backend: the holder refuses: %s\n", reason), 1));
	}
	if (found != (uint64_t)variant)
		exit((fprintf(stderr, "backend: the holder says %d, not %d\n", (int)found, variant), 1));
	return m;
}

static void die(bool damaged, const char *format, ...)
{
	char reason[512];
	struct message m = { .length = 0 };
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(reason, sizeof(reason), format, arguments);
	va_end(arguments);
	fprintf(stderr, "backend: %s\n", reason);
	put(&m, FAILED, 4);
	put_string(&m, reason);
	put(&m, damaged, 1);
	say(&m, -1);
	exit(1);
}

static void find_holder(void)
{
	const char *fd = getenv("NBD_HOLDER_FD"), *device = getenv("NBD_JOIN");
	const char *directory = getenv("NBD_RUNTIME_DIR");
	unsigned char greeting[12] = "nbd-hold\1\0\0", theirs[12];
	if (fd) {
		holder = atoi(fd);
		fcntl(holder, F_SETFD, FD_CLOEXEC);
		unsetenv("NBD_HOLDER_FD");
	} else {
		struct sockaddr_un address = { .sun_family = AF_UNIX };
		if (!device)
			exit((fputs("backend: start me by nbd-ctl attach, or set NBD_JOIN=nbdN\n", stderr), 2));
		snprintf(address.sun_path, sizeof(address.sun_path), "%s/%s.join",
			directory ? directory : "/run/nbd", device);
		holder = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (connect(holder, (struct sockaddr *)&address, sizeof(address)))
			exit((perror(address.sun_path), 1));
	}
	if (send(holder, greeting, 12, MSG_NOSIGNAL) != 12 ||
	    recv(holder, theirs, 12, MSG_WAITALL) != 12 || memcmp(greeting, theirs, 12))
		exit((fputs("backend: the holder speaks another version\n", stderr), 1));
}

/* Hello, and the wait for the Grant, which may take as long as the predecessor takes to die. */
static void introduce(void)
{
	struct message m = { .length = 0 };
	char device[64], description[1024];
	snprintf(description, sizeof(description), "file:%s", file.path);
	put(&m, HELLO, 4);
	put(&m, LEDGER_VERSION, 4);
	put_string(&m, description);
	put(&m, file.size, 8);
	put(&m, 512, 4);
	put(&m, FLAGS, 2);
	put(&m, false, 1);
	say(&m, -1);
	m = hear(GRANT);
	get_string(&m, device, sizeof(device));
	grant.lanes = get(&m, 4);
	grant.ring = get(&m, 8);
	grant.transmit = get(&m, 8);
	grant.max_payload = get(&m, 4);
	grant.kept = get(&m, 8);
	if (grant.lanes > MOST_LANES || grant.kept > MOST_FDS ||
	    grant.received != 1 + grant.lanes + grant.kept)
		die(false, "the Grant came with %d descriptors", (int)grant.received);
	for (unsigned n = 0; n < grant.kept; n++)
		get_string(&m, grant.names[n], NAME);
	grant.crashed = get(&m, 1);
	grant.poison_limit = get(&m, 4);
}

/* ---- the file ---- */

static void open_file(const char *path)
{
	struct stat status;
	const char *attached = getenv("NBD_EXPORT"); /* it may have grown since */
	file.path = realpath(path, NULL);
	file.fd = open(path, O_RDWR | O_CLOEXEC);
	if (!file.path || file.fd < 0 || fstat(file.fd, &status))
		exit((perror(path), 1));
	file.size = (uint64_t)status.st_size / 512 * 512;
	if (attached && strtoull(attached, NULL, 10) < file.size)
		file.size = strtoull(attached, NULL, 10);
}

/* The first backend leaves its locked descriptor with the holder; the others serve that very one.
 * nbd-serve does the same under the same name. */
static void settle(void)
{
	struct message m = { .length = 0 };
	struct stat ours, theirs;
	for (unsigned n = 0; n < grant.kept; n++) {
		int kept = grant.fds[1 + grant.lanes + n];
		if (strcmp(grant.names[n], "file"))
			continue;
		if (fstat(kept, &theirs) || fstat(file.fd, &ours) ||
		    ours.st_dev != theirs.st_dev || ours.st_ino != theirs.st_ino)
			die(false, "%s is not the file that was attached", file.path);
		file.fd = kept;
		return;
	}
	if (flock(file.fd, LOCK_EX | LOCK_NB))
		die(false, "%s: somebody else serves it", file.path);
	put(&m, KEEP, 4);
	put_string(&m, "file");
	say(&m, file.fd);
	hear(KEPT);
}

/* Moves all bytes of up to two places to or from the file. */
static int move(uint32_t command, struct iovec *parts, int count, uint64_t offset)
{
	while (count) {
		if (!parts->iov_len) {
			parts++;
			count--;
			continue;
		}
		ssize_t done = command == READ ? preadv(file.fd, parts, count, (off_t)offset)
					       : pwritev(file.fd, parts, count, (off_t)offset);
		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return done ? errno : EIO; /* the file has become shorter */
		offset += (uint64_t)done;
		for (size_t left = (size_t)done, part; left; left -= part) {
			part = left < parts->iov_len ? left : parts->iov_len;
			parts->iov_base = (char *)parts->iov_base + part;
			parts->iov_len -= part;
			if (!parts->iov_len && left > part)
				parts++, count--;
		}
	}
	return 0;
}

static int clear(uint32_t flags, uint32_t command, uint64_t offset, uint64_t length)
{
	static char blank[1 << 20];
	int mode = FALLOC_FL_KEEP_SIZE |
		(flags & NO_HOLE ? FALLOC_FL_ZERO_RANGE : FALLOC_FL_PUNCH_HOLE);
	if (!length || !fallocate(file.fd, mode, (off_t)offset, (off_t)length) || command == TRIM)
		return 0;
	for (uint64_t end = offset + length; offset < end; offset += sizeof(blank)) {
		uint64_t left = end - offset;
		struct iovec part = { blank, left < sizeof(blank) ? left : sizeof(blank) };
		int error = move(WRITE, &part, 1, offset);
		if (error)
			return error;
	}
	return 0;
}

/* R3. What it does is in the page cache when it returns, so no death of ours undoes it. */
static uint32_t execute(const struct slot *slot, struct iovec *parts, int count)
{
	uint32_t flags = slot->kind >> 16, command = slot->kind & 0xffff;
	uint32_t known = command == WRITE_ZEROES ? FUA | NO_HOLE : FUA;
	bool durable = command == FLUSH ||
		(flags & FUA && (command == WRITE || command == TRIM || command == WRITE_ZEROES));
	int error = 0;
	if (command > WRITE_ZEROES || command == DISCONNECT || flags & ~known ||
	    slot->offset % 512 || slot->length % 512 || slot->offset > file.size ||
	    slot->length > file.size - slot->offset)
		return EINVAL;
	if (durable && header->flush_error)
		return EIO; /* R8: data was lost before; a flush that succeeds would hide that */
	if (command == READ || command == WRITE)
		error = move(command, parts, count, slot->offset);
	else if (command == TRIM || command == WRITE_ZEROES)
		error = clear(flags, command, slot->offset, slot->length);
	if (!error && durable && fdatasync(file.fd))
		error = errno;
	if (!error)
		return 0;
	if (durable && (command == FLUSH || error == EIO))
		header->flush_error = (uint32_t)error;
	fprintf(stderr, "backend: request %u at %llu: %s\n", command,
		(unsigned long long)slot->offset, strerror(error));
	return error == EPERM || error == ENOMEM || error == EINVAL || error == ENOSPC ? (uint32_t)error : EIO;
}

/* ---- a lane ---- */

/* Where stream bytes lie: in two places if they cross the end of the ring. */
static int places(const struct lane *lane, uint64_t position, uint64_t length, struct iovec *parts)
{
	uint64_t start = (position - lane->base) % grant.ring, first = grant.ring - start;
	first = length < first ? length : first;
	parts[0] = (struct iovec){ lane->ring + start, first };
	parts[1] = (struct iovec){ lane->ring, length - first };
	return first == length ? 1 : 2;
}

/* The 28 bytes of a request: its fields go into `slot`, field by field. */
static bool parse(const struct lane *lane, uint64_t position, struct slot *slot)
{
	unsigned char bytes[HEADER_BYTES];
	struct iovec parts[2];
	uint16_t halves[2];
	uint32_t magic;
	places(lane, position, HEADER_BYTES, parts);
	memcpy(bytes, parts[0].iov_base, parts[0].iov_len);
	memcpy(bytes + parts[0].iov_len, parts[1].iov_base, parts[1].iov_len);
	memcpy(&magic, bytes, 4);
	memcpy(halves, bytes + 4, 4);
	memcpy(&slot->cookie, bytes + 8, 8); /* its bytes come back as they came */
	memcpy(&slot->offset, bytes + 16, 8);
	memcpy(&slot->length, bytes + 24, 4);
	slot->kind = (uint32_t)be16toh(halves[0]) << 16 | be16toh(halves[1]);
	slot->cookie = be64toh(slot->cookie);
	slot->offset = be64toh(slot->offset);
	slot->length = be32toh(slot->length);
	return be32toh(magic) == 0x25609513;
}

/* R1 and R5: one recvmmsg or sendmmsg. Its mmsghdr is part of a record in the ledger, so the
 * kernel notes there how much has passed, before this process can die again. The system calls
 * themselves, as a C library may make them out of others. Returns -1 if nothing passed. */
static int64_t transfer(struct lane *lane, long call, int flags, struct record_of_call *pair,
	uint64_t *epoch, struct record_of_call fields, struct iovec *parts, int count)
{
	struct record_of_call *record = &pair[(*epoch + 1) & 1];
	fields.message.msg_hdr.msg_iov = parts;
	fields.message.msg_hdr.msg_iovlen = (size_t)count;
	*record = fields;
	commit(epoch, *epoch + 1);
	if (syscall(call, lane->fd, &record->message, 1, flags, NULL) == 1)
		return record->message.msg_len;
	if (errno == EPIPE || errno == ECONNRESET)
		exit(0); /* the kernel has hung up: the device is going away */
	if (errno != EINTR && errno != EAGAIN)
		die(false, "a lane: %s", strerror(errno));
	return -1;
}

static void receive(struct lane *lane)
{
	struct control *control = lane->control;
	struct iovec parts[2];
	if (lane->parsed >= lane->received)
		lane->base = lane->received; /* R6: nothing lives in the ring; begin anew, in a warm cache */
	uint64_t live = lane->received > lane->parsed ? lane->received - lane->parsed : 0;
	uint64_t wanted = grant.ring - live < RECEIVE_MOST ? grant.ring - live : RECEIVE_MOST;
	int count = places(lane, lane->received, wanted, parts);
	struct record_of_call fields = { lane->received, lane->base, wanted, 0, { .msg_len = 0 }, "" };
	/* O_NONBLOCK instead would change the socket for every process that has a copy of it. */
	int64_t got = transfer(lane, SYS_recvmmsg, MSG_DONTWAIT, control->receive,
		&control->receive_epoch, fields, parts, count);
	if (got == 0)
		exit(0);
	lane->received += got > 0 ? (uint64_t)got : 0;
}

/* R2. Gives slots to the requests that are here entirely. Every slot is free by now. */
static unsigned take(struct lane *lane)
{
	uint64_t position = lane->parsed, at = now();
	unsigned count = 0;
	while (count < SLOTS && !lane->over && position + HEADER_BYTES <= lane->received) {
		struct slot *slot = &lane->slots[count], request = { .position = position, .received_at = at };
		if (!parse(lane, position, &request))
			die(true, "no request at stream position %llu", (unsigned long long)position);
		uint32_t command = request.kind & 0xffff;
		uint64_t end = position + HEADER_BYTES + (command == WRITE ? request.length : 0);
		if (command == DISCONNECT) {
			lane->over = true; /* and stays in the stream: a successor sees it too */
			break;
		}
		/* What is too long is refused as soon as its header is here. */
		if (end > lane->received && !(command == WRITE && request.length > grant.max_payload))
			break;
		request.state = slot->state;
		*slot = request;
		commit(&slot->state, PENDING);
		position = end;
		count++;
	}
	if (count) {
		lane->control->last_received_at = at;
		commit(&lane->control->parsed, position); /* of all of them */
		lane->parsed = position;
	}
	return count;
}

/* R5. The first call commits the transmission, and that is what answers its requests. */
static void pump(struct lane *lane, uint64_t sent, uint64_t length)
{
	struct control *control = lane->control;
	while (sent < length) {
		struct iovec part = { lane->area + sent, length - sent };
		struct record_of_call fields = { lane->sequence, length, sent, 0, { .msg_len = 0 }, "" };
		int64_t went = transfer(lane, SYS_sendmmsg, MSG_NOSIGNAL, control->transmit,
			&control->transmit_epoch, fields, &part, 1);
		sent += went > 0 ? (uint64_t)went : 0;
	}
	if (!header->first_answer_at)
		header->first_answer_at = now();
}

static void send_staged(struct lane *lane)
{
	if (!lane->staged)
		return;
	lane->sequence++;
	pump(lane, 0, lane->staged);
	lane->staged = 0;
}

/* For `nbd-ctl trace` and `nbd-ctl metrics`. */
static void record(struct lane *lane, const struct slot *slot, uint32_t error)
{
	static const int counters[] = { [READ] = 0, [WRITE] = 1, [FLUSH] = 2, [TRIM] = 3 };
	struct control *control = lane->control;
	uint32_t command = slot->kind & 0xffff;
	lane->records[control->recorded % RECORDS] = (struct flight_record){ slot->cookie,
		slot->offset, slot->length, slot->kind, slot->received_at, slot->started_at, now(),
		slot->attempts, error, header->generation };
	commit(&control->recorded, control->recorded + 1);
	control->totals[command <= TRIM ? counters[command] : 4]++;
	control->totals[5] += error != 0;
	if (!error && command <= WRITE)
		control->totals[6 + command] += slot->length;
}

static bool is_poisoned(const struct slot *slot)
{
	return grant.poison_limit && slot->crashes >= grant.poison_limit;
}

/* R3 and R4. */
static void answer(struct lane *lane, struct slot *slot)
{
	uint32_t command = slot->kind & 0xffff, error = EINVAL;
	bool fits = slot->length <= grant.max_payload || (command != READ && command != WRITE);
	uint64_t data = command == READ && fits ? slot->length : 0;
	struct iovec parts[2];
	int count = 1;
	if (lane->staged > SEND_MOST || lane->staged + REPLY_BYTES + data > grant.transmit)
		send_staged(lane);
	unsigned char *reply = lane->area + lane->staged;
	parts[0] = (struct iovec){ reply + REPLY_BYTES, data };
	if (command == WRITE && fits)
		count = places(lane, slot->position + HEADER_BYTES, slot->length, parts);
	slot->started_at = now();
	slot->attempts++;
	if (is_poisoned(slot))
		error = EIO;
	else if (fits)
		error = execute(slot, parts, count);
	uint32_t words[2] = { htobe32(0x67446698), htobe32(error) };
	uint64_t cookie = htobe64(slot->cookie);
	memcpy(reply, words, 8);
	memcpy(reply + 8, &cookie, 8);
	record(lane, slot, error);
	commit(&slot->state, lane->sequence + 1); /* no answer yet: that number is not committed */
	lane->staged += REPLY_BYTES + (error ? 0 : data);
}

/* Answers all that was received. False once the kernel wants to disconnect. */
static bool work(struct lane *lane)
{
	for (unsigned count; (count = take(lane)) > 0; send_staged(lane))
		for (unsigned n = 0; n < count; n++)
			answer(lane, &lane->slots[n]);
	return !lane->over;
}

/* ---- recovery ---- */

/* Those that were being executed when backends crashed come first, fewest crashes in front. */
static int in_order(const void *a, const void *b)
{
	const struct slot *x = *(struct slot *const *)a, *y = *(struct slot *const *)b;
	if (!x->crashes != !y->crashes)
		return x->crashes ? -1 : 1;
	if (x->crashes != y->crashes)
		return x->crashes < y->crashes ? -1 : 1;
	return (x->position > y->position) - (x->position < y->position);
}

/* Section 6 of the page: who was being executed when the predecessor crashed is a suspect. */
static void suspect(struct slot *slot)
{
	if (!slot->started_at)
		return;
	slot->started_at = 0;
	slot->crashes += grant.crashed;
}

static void announce_poison(unsigned lane, const struct slot *slot)
{
	struct message m = { .length = 0 };
	put(&m, POISONED, 4);
	put(&m, lane, 4);
	put(&m, slot->kind & 0xffff, 2);
	put(&m, slot->offset, 8);
	put(&m, slot->length, 4);
	put(&m, slot->crashes, 4);
	say(&m, -1);
}

/* Answers the suspects, each with nothing else under way, so that the next crash has one suspect.
 * Returns how many there were. */
static unsigned isolate(struct lane *lane, struct slot **pending, unsigned count)
{
	unsigned n = 0;
	for (; n < count && pending[n]->crashes; n++) {
		answer(lane, pending[n]);
		send_staged(lane);
	}
	return n;
}

/* Whether an unanswered request is before `parsed`, and if it is a write the one in the ring. */
static bool is_sound(const struct lane *lane, const struct slot *slot)
{
	struct slot sent = { .state = 0 };
	bool is_write = (slot->kind & 0xffff) == WRITE;
	uint64_t end = slot->position + HEADER_BYTES + (is_write ? slot->length : 0);
	if (slot->position >= lane->parsed || end > lane->parsed)
		return false;
	if (!is_write || slot->length > grant.max_payload)
		return true;
	return slot->position >= lane->base && end <= lane->received &&
		lane->received - slot->position <= grant.ring && parse(lane, slot->position, &sent) &&
		sent.cookie == slot->cookie && sent.offset == slot->offset &&
		sent.length == slot->length && sent.kind == slot->kind;
}

/* Continues what the predecessor was doing; what is to be executed again goes to `pending`. */
static unsigned recover(struct lane *lane, struct slot **pending)
{
	struct control *control = lane->control;
	struct record_of_call in = control->receive[control->receive_epoch & 1];
	struct record_of_call out = control->transmit[control->transmit_epoch & 1];
	uint64_t sent = out.amount + out.message.msg_len;
	unsigned count = 0;
	lane->received = in.position + in.message.msg_len;
	lane->base = in.place;
	lane->parsed = control->parsed;
	lane->sequence = out.position;
	if (in.message.msg_len > in.amount || in.amount > grant.ring || lane->base > lane->parsed ||
	    lane->base > lane->received || !lane->sequence || sent > out.place ||
	    (lane->received > lane->parsed && lane->received - lane->parsed > grant.ring) ||
	    out.place > grant.transmit)
		die(true, "a lane's records contradict each other");
	pump(lane, sent, out.place);
	for (struct slot *slot = lane->slots; slot < lane->slots + SLOTS; slot++) {
		if (slot->state == PENDING && slot->position >= lane->parsed) {
			commit(&slot->state, 0); /* filled and never committed: it will be taken again */
		} else if (slot->state == PENDING || slot->state > lane->sequence) {
			if (!is_sound(lane, slot))
				die(true, "slot %d contradicts the ring", (int)(slot - lane->slots));
			commit(&slot->state, PENDING);
			suspect(slot);
			pending[count++] = slot;
		}
	}
	qsort(pending, count, sizeof(*pending), in_order);
	return count;
}

static void map_ledger(void)
{
	uint64_t stride = PAGE + SLOTS * sizeof(struct slot) + RECORDS * sizeof(struct flight_record) +
		grant.ring + grant.transmit;
	unsigned char *at = mmap(NULL, PAGE + grant.lanes * stride, PROT_READ | PROT_WRITE, MAP_SHARED,
		grant.fds[0], 0);
	if (at == MAP_FAILED)
		die(false, "the ledger: %s", strerror(errno));
	header = (struct header *)at;
	if (header->magic != 0x4e42444c45444731 || header->version != LEDGER_VERSION ||
	    header->lanes != grant.lanes || header->ring != grant.ring ||
	    header->transmit != grant.transmit || header->max_payload != grant.max_payload)
		die(true, "the ledger's header is not what the holder said");
	at += PAGE;
	for (unsigned n = 0; n < grant.lanes; n++, at += stride) {
		struct lane *lane = &lanes[n];
		lane->fd = grant.fds[1 + n];
		lane->control = (struct control *)at;
		lane->slots = (struct slot *)(at + PAGE);
		lane->records = (struct flight_record *)(lane->slots + SLOTS);
		lane->ring = (unsigned char *)(lane->records + RECORDS);
		lane->area = lane->ring + grant.ring;
		mlock(at, PAGE); /* R9 */
	}
}

static void serve(void)
{
	static struct slot *pending[MOST_LANES][SLOTS];
	struct pollfd polled[MOST_LANES];
	struct message m = { .length = 0 };
	unsigned counts[MOST_LANES], alone[MOST_LANES], all = 0, left = (unsigned)grant.lanes;
	for (unsigned n = 0; n < grant.lanes; n++)
		all += counts[n] = recover(&lanes[n], pending[n]);
	for (unsigned n = 0; n < grant.lanes; n++)
		for (unsigned i = 0; i < counts[n]; i++)
			if (is_poisoned(pending[n][i]))
				announce_poison(n, pending[n][i]);
	header->first_answer_at = 0;
	header->ready_at = now();
	header->generation++;
	put(&m, READY, 4);
	put(&m, all, 4);
	say(&m, -1);
	/* First the suspects of all lanes: nothing else may be under way meanwhile. */
	for (unsigned n = 0; n < grant.lanes; n++)
		alone[n] = isolate(&lanes[n], pending[n], counts[n]);
	for (unsigned n = 0; n < grant.lanes; n++) {
		for (unsigned i = alone[n]; i < counts[n]; i++)
			answer(&lanes[n], pending[n][i]);
		send_staged(&lanes[n]);
		/* At first all: of what was received before, poll() knows nothing. */
		polled[n] = (struct pollfd){ lanes[n].fd, POLLIN, POLLIN };
	}
	for (bool first = true; left; first = false) {
		if (!first && poll(polled, grant.lanes, -1) < 0 && errno != EINTR)
			die(false, "poll: %s", strerror(errno));
		for (unsigned n = 0; n < grant.lanes; n++) {
			if (polled[n].fd < 0 || !polled[n].revents)
				continue;
			if (!first)
				receive(&lanes[n]);
			if (!work(&lanes[n])) {
				polled[n].fd = -1; /* poll() passes over it */
				left--;
			}
		}
	}
}

int main(int count, char **arguments)
{
	if (count != 2)
		return fputs("usage: backend FILE (by nbd-ctl attach, or with NBD_JOIN=nbdN)\n", stderr), 2;
	open_file(arguments[1]);
	find_holder();
	introduce();
	settle();
	map_ledger();
	serve();
	return 0;
}
