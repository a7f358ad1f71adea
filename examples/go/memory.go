// A device in a memfd, which the holder stores, so that it outlives the program. With libnbdbackend-dev:
//
//	go build memory.go && nbd-ctl attach -- ./memory 64
//
// Go takes requests from a queue, so no C function has to call back. Its goroutines complete them.
package main

// #cgo CFLAGS: -D_GNU_SOURCE
// #cgo LDFLAGS: -lnbdbackend
// #include <nbdbackend.h>
// #include <poll.h>
// #include <stdlib.h>
// #include <sys/mman.h>
import "C"

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"
)

const batch = 64

func check(what string, result C.int) C.int {
	if result < 0 {
		fmt.Fprintf(os.Stderr, "memory: %s: %s\n", what, C.GoString(C.nbdb_error()))
		os.Exit(1)
	}
	return result
}

func text(words string) *C.char { return C.CString(words) }

// The memory that a predecessor left, or new memory, which is stored.
func open(device C.int, size int) ([]byte, error) {
	fd := C.nbdb_stored(device, text("memory"))
	if fd < 0 {
		if fd = C.memfd_create(text("memory"), C.MFD_CLOEXEC); fd < 0 {
			return nil, syscall.ENOMEM
		}
		if err := syscall.Ftruncate(int(fd), int64(size)); err != nil {
			return nil, err
		}
		check("keep", C.nbdb_keep(device, text("memory"), fd))
	}
	return syscall.Mmap(int(fd), 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
}

func execute(memory []byte, request C.struct_nbdb_request) {
	start, end := uint64(request.offset), uint64(request.offset)+uint64(request.length)
	switch request._type {
	case C.NBDB_CMD_READ:
		C.nbdb_complete_read(request.handle, unsafe.Pointer(&memory[start]), C.size_t(request.length))
		return
	case C.NBDB_CMD_WRITE:
		copy(memory[start:end], unsafe.Slice((*byte)(request.data), int(request.length)))
	case C.NBDB_CMD_ZERO:
		for at := start; at < end; at++ {
			memory[at] = 0
		}
	}
	C.nbdb_complete(request.handle, 0)
}

func main() {
	runtime.LockOSThread() // nbdb_error belongs to the thread of the call that failed
	mebibytes := 0
	if len(os.Args) == 2 {
		mebibytes, _ = strconv.Atoi(os.Args[1])
	}
	if mebibytes < 1 {
		fmt.Fprintln(os.Stderr, "usage: memory MEBIBYTES")
		os.Exit(2)
	}
	size := mebibytes << 20
	C.nbdb_log_to_stderr(text("memory"))
	device := check("open", C.nbdb_open(nil))
	queue := check("queue", C.nbdb_queue_open())
	geometry := C.struct_nbdb_geometry{size: C.uint64_t(size), block_size: 512, flags: C.NBDB_ZERO}
	geometry.struct_size = C.size_t(unsafe.Sizeof(geometry))
	options := C.struct_nbdb_serve_options{description: text("memory:"), flags: C.NBDB_TELL_GRANTED}
	options.struct_size = C.size_t(unsafe.Sizeof(options))
	check("start", C.nbdb_start_queued(device, &geometry, queue, &options))
	var memory []byte
	var requests [batch]C.struct_nbdb_request
	ready := C.struct_pollfd{fd: C.nbdb_queue_fd(queue), events: C.POLLIN}
	for {
		C.poll(&ready, 1, -1)
		count := check("take", C.nbdb_take(queue, &requests[0], C.size_t(unsafe.Sizeof(requests[0])), batch))
		for _, request := range requests[:count] {
			switch request._type {
			case C.NBDB_GRANTED:
				var err error
				if memory, err = open(device, size); err != nil {
					C.nbdb_complete(request.handle, C.int(err.(syscall.Errno)))
				} else {
					C.nbdb_complete(request.handle, 0)
				}
			case C.NBDB_SERVING:
			case C.NBDB_ENDED:
				if request.error != 0 {
					os.Exit(1)
				}
				return
			default:
				go execute(memory, request)
			}
		}
	}
}
