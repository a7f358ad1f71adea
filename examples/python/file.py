"""A file as a device: nbd-ctl attach -- python3 -m nbdbackend file.py disk.img"""
import os
import sys
from nbdbackend import Backend
class File(Backend):
    def __init__(self, path):
        self.fd = os.open(path, os.O_RDWR)
        self.size = os.fstat(self.fd).st_size
    def read(self, offset, length):
        return os.pread(self.fd, length, offset)
    def write(self, offset, data, fua):
        os.pwritev(self.fd, [data], offset, os.RWF_DSYNC if fua else 0)
    def flush(self):
        os.fdatasync(self.fd)
backend = File(sys.argv[1])
