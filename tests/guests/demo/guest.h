/* The demo guest: a small S-mode program that works its virtio disks by command. */
#ifndef GUEST_H
#define GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* console.c: the 16550 at 0x10000000, and what is written with it */
void console_init(void);
void put_char(char c);
void put_text(const char *text);
void put_decimal(uint64_t value);
void put_hex(uint64_t value, int digits);
/* Waits for a line, echoing it; the processor sleeps meanwhile. */
void read_line(char *line, size_t size);
/* A byte that came in while something else ran, or -1. */
int poll_char(void);

/* platform.c: traps, PLIC, time, SBI */
extern volatile uint64_t trap_cause; /* scause + 1 is never 0: NO_TRAP means none since it was reset */
#define NO_TRAP UINT64_MAX
void platform_init(void);
void enable_irq(unsigned irq);
/* Sleeps until an interrupt is pending, takes it from the PLIC, and quiets a disk that sent it. */
void wait_for_interrupt(void);
uint64_t read_time(void); /* 10 MHz */
uint64_t read_instret(void);
void power_off(bool is_reboot);
void *memcpy(void *target, const void *source, size_t length);
void *memset(void *target, int value, size_t length);

static inline uint32_t mmio_read(uintptr_t address) { return *(volatile uint32_t *)address; }
static inline void mmio_write(uintptr_t address, uint32_t value)
{
  *(volatile uint32_t *)address = value;
}

/* disk.c: virtio-blk over virtio-mmio (modern) */
#define MAX_DISKS 8
#define MAX_REQUEST_BYTES (256 * 1024)
enum disk_operation { DISK_READ = 0, DISK_WRITE = 1, DISK_FLUSH = 4, DISK_DISCARD = 11, DISK_ZERO = 13 };
void disks_init(void); /* finds and resets all disks; may be repeated */
unsigned disk_count(void);
uint64_t disk_bytes(unsigned disk);
const char *disk_serial(unsigned disk);
/* Starts a request: sectors of 512 bytes. Returns a slot, or -1 where all are in use. */
int disk_submit(unsigned disk, enum disk_operation operation, uint64_t sector, void *data,
                uint32_t length);
/* Waits until a request has ended: its slot; *status is virtio's status byte. */
int disk_wait_any(unsigned disk, uint8_t *status);
/* Acknowledges an interrupt, if it is a disk's. */
void disk_interrupt(unsigned irq);
/* One request, start to end: virtio's status byte. */
uint8_t disk_run(unsigned disk, enum disk_operation operation, uint64_t sector, void *data,
                 uint32_t length);

/* sha256.c */
struct sha256 {
  uint32_t state[8];
  uint64_t length;
  uint8_t block[64];
};
void sha256_init(struct sha256 *hash);
void sha256_add(struct sha256 *hash, const uint8_t *data, size_t length);
void sha256_end(struct sha256 *hash, uint8_t digest[32]);

#endif
