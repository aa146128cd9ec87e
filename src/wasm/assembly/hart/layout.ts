/**
 * The layout of a machine's one shared memory. Harts and the I/O worker meet here and nowhere else.
 * Every offset is written once, in this file; `exports.ts` exports them as globals and the host
 * reads them from the module.
 *
 *   0x0000_0000  null page: never used, so that a zero offset is a bug
 *   0x0000_1000  control block           (4 KiB)   words that both sides read and write atomically
 *   0x0000_2000  device block            (56 KiB)  PLIC, CLINT, UART rings, RTC, virtio slots
 *   0x0001_0000  static data             (192 KiB) AssemblyScript's constant tables, never mutable
 *   0x0004_0000  hart blocks             MAX_HARTS x HART_STRIDE: registers, CSRs, TLBs
 *   CODE_FLAGS   one byte a page of RAM  1: a hart holds decoded code of it, 2: written since
 *   DECODE_BASE  decoded instructions    MAX_HARTS x DECODE_STRIDE
 *   TRANSLATOR_BASE  translated regions  MAX_HARTS x TRANSLATOR_STRIDE: see translator/area.ts
 *   RAM_BASE     guest RAM, to the end of the memory; guest physical RAM_GPA is here
 *
 * A word named *_WORD is an i32, used with atomics. Untouched parts cost no memory: the host maps
 * it lazily.
 */

export const PAGE_SHIFT: u32 = 12;
export const PAGE_SIZE: u32 = 4096;

// ---- control block ---------------------------------------------------------------------------

export const CONTROL_BASE: u32 = 0x1000;
/** Non-zero: every hart leaves its run loop at the next slice border. Written by the host. */
export const STOP_WORD: u32 = CONTROL_BASE + 0x00;
/** Count of harts, bytes of RAM (u64), 1 if the SBI is built in: written once before the start. */
export const HART_COUNT: u32 = CONTROL_BASE + 0x04;
export const RAM_BYTES: u32 = CONTROL_BASE + 0x08;
export const SBI_BUILT_IN: u32 = CONTROL_BASE + 0x10;
/** Why the machine stops by itself: see EXIT_*. Set by a hart, read by the host. */
export const EXIT_WORD: u32 = CONTROL_BASE + 0x14;
export const EXIT_CODE: u32 = CONTROL_BASE + 0x18;
/**
 * Bumped by a hart to wake the I/O worker (Atomics.notify); what there is to do stands in
 * DOORBELLS.
 */
export const IO_WAKE_WORD: u32 = CONTROL_BASE + 0x40;
/** A set of DOORBELL_* bits, atomically or-ed by harts, exchanged with 0 by the I/O worker. */
export const DOORBELL_WORD: u32 = CONTROL_BASE + 0x44;
/** Non-zero while the I/O worker sleeps: only then need a hart notify it. */
export const IO_SLEEPING_WORD: u32 = CONTROL_BASE + 0x48;
/**
 * One bit a PLIC source: its level, atomically set and cleared by whoever drives the line. Lines of
 * the UART, the RTC and virtio slots are not driven here: the PLIC takes their level from their own
 * registers (a virtio slot's from VIRTIO_INTERRUPT_STATUS_WORD), so that no edge can be lost.
 * Whoever raises a line bumps and notifies HART_WAKE_WORD of every hart afterwards.
 */
export const IRQ_LEVEL_WORD: u32 = CONTROL_BASE + 0x80;
/** Bumped when a page with CODE_FLAGS 1 was written (by a hart or by DMA): FENCE.I then looks. */
export const CODE_WRITES_WORD: u32 = CONTROL_BASE + 0x84;
/** Host wall clock at which mtime was 0, in nanoseconds since 1970 (u64): the RTC adds to it. */
export const RTC_EPOCH_NS: u32 = CONTROL_BASE + 0x88;
/** Host monotonic time, in mtime ticks (10 MHz), at which mtime was 0 (u64). */
export const MTIME_ORIGIN: u32 = CONTROL_BASE + 0x90;
/** Ticks of host time that a hart runs between two samples of where it is; 0: nobody looks. */
export const SAMPLE_PERIOD_WORD: u32 = CONTROL_BASE + 0x98;

export const EXIT_NONE: u32 = 0;
/** SBI SRST or the test finisher; EXIT_CODE is 0 or the guest's. */
export const EXIT_SHUTDOWN: u32 = 1;
export const EXIT_REBOOT: u32 = 2;
export const EXIT_HOST_FAULT: u32 = 3; // a bug of ours that a hart noticed; EXIT_CODE says which

/** Bytes in the console's output ring, or room in the input ring. */
export const DOORBELL_CONSOLE: u32 = 1 << 0;
export const DOORBELL_EXIT: u32 = 1 << 1; // EXIT_WORD was set
/** DOORBELL_VIRTIO << slot: a queue of that virtio slot was notified, or its status was written. */
export const DOORBELL_VIRTIO: u32 = 1 << 8;

// ---- device block ----------------------------------------------------------------------------

export const DEVICE_BASE: u32 = 0x2000;

/** PLIC: sources 1..31, contexts 2 a hart (M, S). */
export const PLIC_BASE: u32 = DEVICE_BASE + 0x0000; // 4 KiB
export const CLINT_BASE: u32 = DEVICE_BASE + 0x1000; // 1 KiB: msip and mtimecmp a hart
export const UART_BASE: u32 = DEVICE_BASE + 0x1400; // 1 KiB: 16550 registers
export const RTC_BASE: u32 = DEVICE_BASE + 0x1800; // 1 KiB
export const SBI_BASE: u32 = DEVICE_BASE + 0x1c00; // 1 KiB: HSM state of each hart

/** virtio-mmio slots: VIRTIO_SLOTS x VIRTIO_STRIDE bytes of registers and config space. */
export const VIRTIO_BASE: u32 = DEVICE_BASE + 0x2000;
export const VIRTIO_STRIDE: u32 = 0x400;
export const VIRTIO_SLOTS: u32 = 8;

// Offsets within a virtio slot (virtio 1.2, 4.2.2). The hart's path answers register accesses out
// of these words alone; the I/O worker fills in the device's part and works the queues.
export const VIRTIO_DEVICE_ID: u32 = 0x00; // 0: no device in this slot
/** The driver's status bits, DEVICE_NEEDS_RESET or-ed by the device. */
export const VIRTIO_STATUS_WORD: u32 = 0x04;
export const VIRTIO_DEVICE_FEATURES: u32 = 0x08; // u64
export const VIRTIO_DRIVER_FEATURES: u32 = 0x10; // u64
export const VIRTIO_INTERRUPT_STATUS_WORD: u32 = 0x18;
export const VIRTIO_CONFIG_GENERATION_WORD: u32 = 0x1c;
export const VIRTIO_DEVICE_FEATURES_SEL: u32 = 0x20;
export const VIRTIO_DRIVER_FEATURES_SEL: u32 = 0x24;
export const VIRTIO_QUEUE_SEL: u32 = 0x28;
/** One bit a queue: or-ed by harts on QueueNotify, exchanged with 0 by the I/O worker. */
export const VIRTIO_NOTIFY_WORD: u32 = 0x2c;
/**
 * A hart that writes status 0 bumps the first and waits, in bounded steps, until the I/O worker,
 * with nothing of the device in flight any more, has stored the same value in the second and
 * notified.
 */
export const VIRTIO_RESET_WORD: u32 = 0x30;
export const VIRTIO_RESET_DONE_WORD: u32 = 0x34;
export const VIRTIO_QUEUES: u32 = 0x40; // VIRTIO_QUEUE_COUNT x VIRTIO_QUEUE_STRIDE
export const VIRTIO_QUEUE_COUNT: u32 = 8;
export const VIRTIO_QUEUE_STRIDE: u32 = 0x40;
export const VIRTIO_CONFIG: u32 = 0x300; // 256 bytes of device configuration

// Offsets within a queue's block.
export const VIRTIO_QUEUE_NUM_MAX: u32 = 0x00; // 0: no such queue
export const VIRTIO_QUEUE_NUM: u32 = 0x04;
export const VIRTIO_QUEUE_READY_WORD: u32 = 0x08;
export const VIRTIO_QUEUE_DESC: u32 = 0x10; // u64, guest physical
export const VIRTIO_QUEUE_DRIVER: u32 = 0x18; // u64
export const VIRTIO_QUEUE_DEVICE: u32 = 0x20; // u64

/** Console rings: single producer, single consumer; head and tail run freely and are masked. */
export const CONSOLE_BASE: u32 = DEVICE_BASE + 0x5000;
/** Written by harts, under the UART's lock. */
export const CONSOLE_OUT_HEAD_WORD: u32 = CONSOLE_BASE + 0x00;
export const CONSOLE_OUT_TAIL_WORD: u32 = CONSOLE_BASE + 0x04; // written by the I/O worker
export const CONSOLE_IN_HEAD_WORD: u32 = CONSOLE_BASE + 0x08; // written by the I/O worker
export const CONSOLE_IN_TAIL_WORD: u32 = CONSOLE_BASE + 0x0c; // written by harts
export const CONSOLE_RING_BYTES: u32 = 0x2000; // a power of two
export const CONSOLE_OUT_RING: u32 = CONSOLE_BASE + 0x1000;
export const CONSOLE_IN_RING: u32 = CONSOLE_OUT_RING + CONSOLE_RING_BYTES;

// ---- static data, hart blocks, decoded code, RAM -----------------------------------------------

/** Where the compiler puts constant tables (`--memoryBase`): see build.ts. */
export const STATIC_BASE: u32 = 0x0001_0000;

export const MAX_HARTS: u32 = 8;
export const HART_BASE: u32 = 0x0004_0000;
export const HART_STRIDE: u32 = 0x0008_0000; // 512 KiB

// Offsets within a hart block. What other modules than the processor's need stands first.
/**
 * Bumped and notified to wake a hart from WFI, or to make it look at interrupts before its slice
 * ends.
 */
export const HART_WAKE_WORD: u32 = 0x00;
/** HART_STOPPED, HART_RUNNING, HART_WAITING (in WFI). */
export const HART_STATE_WORD: u32 = 0x04;
/** Bits of mip that others drive, set atomically: MSIP, SSIP by IPI; MEIP, SEIP by the PLIC. */
export const HART_MIP_WORD: u32 = 0x08;
/** Requests of other harts (REMOTE_*), or-ed atomically; their acknowledgement. */
export const HART_REMOTE_WORD: u32 = 0x0c;
export const HART_REMOTE_DONE_WORD: u32 = 0x10; // odd while the hart works on requests it took
/** Registers: x0..x31, f0..f31, pc; see state.ts for the rest. */
export const HART_X: u32 = 0x100; // 32 x u64
export const HART_F: u32 = 0x200; // 32 x u64
export const HART_PC: u32 = 0x300; // u64
export const HART_PRIV: u32 = 0x308; // u32: 0 U, 1 S, 3 M
export const HART_INSTRET: u32 = 0x310; // u64: instructions retired since reset
export const HART_CSR: u32 = 0x400; // CSRs, see state.ts
/** Figures of the tiers, a u64 each, in the order of STAT_* (translator/statistics.ts). */
export const HART_STATISTICS: u32 = 0x1f800; // 64 x u64
/** Samples for a profiler: a ring with one producer, the hart, and one consumer, the host. */
export const HART_SAMPLES: u32 = 0x60000;

export const HART_STOPPED: u32 = 0;
export const HART_RUNNING: u32 = 1;
export const HART_WAITING: u32 = 2;

// Offsets within HART_SAMPLES. Head and tail run freely and are masked.
export const SAMPLES_HEAD_WORD: u32 = 0x00; // written by the hart
export const SAMPLES_TAIL_WORD: u32 = 0x04; // written by the host
/** Periods that passed while the ring was full. */
export const SAMPLES_LOST_WORD: u32 = 0x08;
export const SAMPLES_RING: u32 = 0x100; // SAMPLES_SLOTS x SAMPLE_BYTES
export const SAMPLES_SLOTS: u32 = 256; // a power of two
export const SAMPLE_BYTES: u32 = 256;
/** u32 each: periods that the sample stands for, privilege, frames. */
export const SAMPLE_WEIGHT: u32 = 0x00;
export const SAMPLE_PRIV: u32 = 0x04;
export const SAMPLE_FRAME_COUNT: u32 = 0x08;
/** u64 each: pc, then addresses that calls return to, innermost first. */
export const SAMPLE_FRAMES: u32 = 0x10;
export const SAMPLE_FRAMES_MAX: u32 = 30;

export const REMOTE_FENCE_I: u32 = 1 << 0; // drop decoded code
export const REMOTE_SFENCE: u32 = 1 << 1; // drop the whole TLB

export const CODE_FLAGS: u32 = HART_BASE + MAX_HARTS * HART_STRIDE; // 0x0044_0000
export const MAX_RAM_PAGES: u32 = 0x000e_0000; // 3.5 GiB
export const DECODE_BASE: u32 = CODE_FLAGS + MAX_RAM_PAGES;
export const DECODE_STRIDE: u32 = 0x0200_0000; // 32 MiB a hart

export const TRANSLATOR_BASE: u32 = (DECODE_BASE + MAX_HARTS * DECODE_STRIDE + 0xffff) & ~0xffff;
export const TRANSLATOR_STRIDE: u32 = 0x00e0_0000; // 14 MiB a hart
/** Of a hart's area there, the tables of translator/jump_cache.ts. */
export const JUMP_CACHES: u32 = 0x00d0_0000;
export const JUMP_CACHES_BYTES: u32 = 0x0010_0000;

/** Guest RAM: offset in the memory, guest physical address. */
export const RAM_BASE: u32 = TRANSLATOR_BASE + MAX_HARTS * TRANSLATOR_STRIDE;
export const RAM_GPA: u64 = 0x8000_0000;

// ---- guest physical map beside RAM: that of QEMU's `virt` ---------------------------------------

export const FINISHER_GPA: u32 = 0x00100000;
export const FINISHER_SIZE: u32 = 0x1000;
export const RTC_GPA: u32 = 0x00101000;
export const RTC_SIZE: u32 = 0x1000;
export const RTC_IRQ: u32 = 11;
export const CLINT_GPA: u32 = 0x02000000;
export const CLINT_SIZE: u32 = 0x10000;
export const PLIC_GPA: u32 = 0x0c000000;
export const PLIC_SIZE: u32 = 0x600000;
export const PLIC_SOURCE_COUNT: u32 = 32; // source 0 does not exist
export const UART_GPA: u32 = 0x10000000;
export const UART_SIZE: u32 = 0x100;
export const UART_IRQ: u32 = 10;
/** Slot n is at VIRTIO_GPA + n * VIRTIO_SLOT_SIZE and interrupts as source VIRTIO_IRQ + n. */
export const VIRTIO_GPA: u32 = 0x10001000;
export const VIRTIO_SLOT_SIZE: u32 = 0x1000;
export const VIRTIO_IRQ: u32 = 1;
