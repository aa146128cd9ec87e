/* virtio-blk over virtio-mmio, modern only (virtio 1.2: 2.7 split virtqueues, 4.2.2, 5.2). */
#include "guest.h"

#define SLOT_BASE 0x10001000UL
#define SLOT_BYTES 0x1000UL
#define SLOT_COUNT 8

#define MAGIC 0x000
#define VERSION 0x004
#define DEVICE_ID 0x008
#define DEVICE_FEATURES 0x010
#define DEVICE_FEATURES_SEL 0x014
#define DRIVER_FEATURES 0x020
#define DRIVER_FEATURES_SEL 0x024
#define QUEUE_SEL 0x030
#define QUEUE_NUM_MAX 0x034
#define QUEUE_NUM 0x038
#define QUEUE_READY 0x044
#define QUEUE_NOTIFY 0x050
#define INTERRUPT_STATUS 0x060
#define INTERRUPT_ACK 0x064
#define STATUS 0x070
#define QUEUE_DESC 0x080
#define QUEUE_DRIVER 0x090
#define QUEUE_DEVICE 0x0a0
#define CONFIG 0x100

#define STATUS_ACKNOWLEDGE 1
#define STATUS_DRIVER 2
#define STATUS_DRIVER_OK 4
#define STATUS_FEATURES_OK 8
#define DESC_NEXT 1
#define DESC_WRITE 2
#define FEATURE_VERSION_1 1u /* bit 32 */
#define FEATURES_LOW ((1u << 9) | (1u << 13) | (1u << 14)) /* flush, discard, write-zeroes */
#define GET_ID 8

#define SLOTS 16 /* requests in flight a disk: three descriptors each */
#define QUEUE_SIZE 64

struct descriptor {
  uint64_t address;
  uint32_t length;
  uint16_t flags;
  uint16_t next;
};
struct available {
  uint16_t flags, index, ring[QUEUE_SIZE];
};
struct used {
  uint16_t flags, index;
  struct {
    uint32_t id, length;
  } ring[QUEUE_SIZE];
};
struct range {
  uint64_t sector;
  uint32_t sectors, flags;
};
struct request {
  uint32_t type, reserved;
  uint64_t sector;
  struct range range; /* of discard and write-zeroes */
  volatile uint8_t status;
  bool is_used;
};
struct disk {
  struct descriptor descriptors[QUEUE_SIZE] __attribute__((aligned(4096)));
  struct available available __attribute__((aligned(64)));
  volatile struct used used __attribute__((aligned(64)));
  struct request requests[SLOTS];
  uintptr_t base;
  uint64_t bytes;
  uint16_t used_seen;
  char serial[21];
};

static struct disk disks[MAX_DISKS];
static unsigned count;

static void fence(void) { __asm__ volatile("fence rw, rw" ::: "memory"); }

static void write_address(uintptr_t reg, const volatile void *pointer)
{
  mmio_write(reg, (uint32_t)(uintptr_t)pointer);
  mmio_write(reg + 4, (uint32_t)((uintptr_t)pointer >> 32));
}

static bool set_up(struct disk *disk, uintptr_t base)
{
  mmio_write(base + STATUS, 0);
  mmio_write(base + STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
  mmio_write(base + DEVICE_FEATURES_SEL, 0);
  uint32_t low = mmio_read(base + DEVICE_FEATURES) & FEATURES_LOW;
  mmio_write(base + DRIVER_FEATURES_SEL, 0);
  mmio_write(base + DRIVER_FEATURES, low);
  mmio_write(base + DRIVER_FEATURES_SEL, 1);
  mmio_write(base + DRIVER_FEATURES, FEATURE_VERSION_1);
  mmio_write(base + STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK);
  if (!(mmio_read(base + STATUS) & STATUS_FEATURES_OK))
    return false;
  mmio_write(base + QUEUE_SEL, 0);
  if (mmio_read(base + QUEUE_NUM_MAX) < QUEUE_SIZE)
    return false;
  mmio_write(base + QUEUE_NUM, QUEUE_SIZE);
  write_address(base + QUEUE_DESC, disk->descriptors);
  write_address(base + QUEUE_DRIVER, &disk->available);
  write_address(base + QUEUE_DEVICE, &disk->used);
  mmio_write(base + QUEUE_READY, 1);
  mmio_write(base + STATUS,
             STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK);
  disk->base = base;
  disk->bytes = 512 * (mmio_read(base + CONFIG) | (uint64_t)mmio_read(base + CONFIG + 4) << 32);
  return true;
}

void disks_init(void)
{
  count = 0;
  memset(disks, 0, sizeof disks);
  for (unsigned slot = 0; slot < SLOT_COUNT; slot++) {
    uintptr_t base = SLOT_BASE + slot * SLOT_BYTES;
    if (mmio_read(base + MAGIC) != 0x74726976 || mmio_read(base + VERSION) != 2 ||
        mmio_read(base + DEVICE_ID) != 2)
      continue;
    if (!set_up(&disks[count], base)) {
      put_text("a disk refuses its driver\n");
      continue;
    }
    enable_irq(1 + slot);
    disk_run(count, (enum disk_operation)GET_ID, 0, disks[count].serial, 20);
    count++;
  }
}

unsigned disk_count(void) { return count; }
uint64_t disk_bytes(unsigned disk) { return disks[disk].bytes; }
const char *disk_serial(unsigned disk) { return disks[disk].serial; }

int disk_submit(unsigned index, enum disk_operation operation, uint64_t sector, void *data,
                uint32_t length)
{
  struct disk *disk = &disks[index];
  unsigned slot = 0;
  while (slot < SLOTS && disk->requests[slot].is_used)
    slot++;
  if (slot == SLOTS)
    return -1;
  struct request *request = &disk->requests[slot];
  *request = (struct request){.type = operation, .sector = sector, .status = 0xff, .is_used = true};
  if (operation == DISK_DISCARD || operation == DISK_ZERO) {
    request->range = (struct range){sector, length / 512, operation == DISK_ZERO};
    request->sector = 0;
    data = &request->range;
    length = sizeof request->range;
  }
  struct descriptor *d = &disk->descriptors[3 * slot];
  uint16_t first = (uint16_t)(3 * slot);
  bool is_read = operation == DISK_READ || operation == (enum disk_operation)GET_ID;
  d[0] = (struct descriptor){(uintptr_t)request, 16, DESC_NEXT, first + 1};
  d[1] = (struct descriptor){(uintptr_t)data, length,
                             (uint16_t)(DESC_NEXT | (is_read ? DESC_WRITE : 0)), first + 2};
  d[2] = (struct descriptor){(uintptr_t)&request->status, 1, DESC_WRITE, 0};
  if (operation == DISK_FLUSH)
    d[0].next = first + 2;
  disk->available.ring[disk->available.index % QUEUE_SIZE] = first;
  fence();
  disk->available.index++;
  fence();
  mmio_write(disk->base + QUEUE_NOTIFY, 0);
  return (int)slot;
}

void disk_interrupt(unsigned irq)
{
  uintptr_t base = SLOT_BASE + (irq - 1) * SLOT_BYTES;
  if (irq - 1 < SLOT_COUNT)
    mmio_write(base + INTERRUPT_ACK, mmio_read(base + INTERRUPT_STATUS));
}

int disk_wait_any(unsigned index, uint8_t *status)
{
  struct disk *disk = &disks[index];
  while (disk->used.index == disk->used_seen)
    wait_for_interrupt();
  fence();
  unsigned slot = disk->used.ring[disk->used_seen++ % QUEUE_SIZE].id / 3;
  *status = disk->requests[slot].status;
  disk->requests[slot].is_used = false;
  return (int)slot;
}

uint8_t disk_run(unsigned disk, enum disk_operation operation, uint64_t sector, void *data,
                 uint32_t length)
{
  uint8_t status;
  disk_submit(disk, operation, sector, data, length);
  disk_wait_any(disk, &status);
  return status;
}
