/* Traps, interrupts, time and firmware calls of the virt board. */
#include "guest.h"

#define PLIC 0x0c000000UL
#define PLIC_ENABLE_S (PLIC + 0x2080)    /* context 1: hart 0, S mode */
#define PLIC_THRESHOLD_S (PLIC + 0x201000)
#define PLIC_CLAIM_S (PLIC + 0x201004)
#define SBI_EXT_SRST 0x53525354

volatile uint64_t trap_cause = NO_TRAP;

void platform_init(void)
{
  mmio_write(PLIC_THRESHOLD_S, 0);
  /* SEIE without sstatus.SIE: an interrupt ends WFI but never traps. */
  __asm__ volatile("csrs sie, %0" ::"r"(1UL << 9));
}

void enable_irq(unsigned irq)
{
  mmio_write(PLIC + 4 * irq, 1);
  mmio_write(PLIC_ENABLE_S, mmio_read(PLIC_ENABLE_S) | 1u << irq);
}

void wait_for_interrupt(void)
{
  __asm__ volatile("wfi" ::: "memory");
  uint32_t irq = mmio_read(PLIC_CLAIM_S);
  if (!irq)
    return;
  /* Also when nobody waits for a disk: what it did may have been seen before its interrupt came,
     and a line that stays high would end every WFI at once. */
  disk_interrupt(irq);
  mmio_write(PLIC_CLAIM_S, irq);
}

uint64_t read_time(void)
{
  uint64_t value;
  __asm__ volatile("rdtime %0" : "=r"(value));
  return value;
}

uint64_t read_instret(void)
{
  uint64_t value;
  __asm__ volatile("rdinstret %0" : "=r"(value));
  return value;
}

void power_off(bool is_reboot)
{
  register uint64_t a0 __asm__("a0") = is_reboot ? 1 : 0;
  register uint64_t a1 __asm__("a1") = 0;
  register uint64_t a6 __asm__("a6") = 0;
  register uint64_t a7 __asm__("a7") = SBI_EXT_SRST;
  __asm__ volatile("ecall" : "+r"(a0), "+r"(a1) : "r"(a6), "r"(a7) : "memory");
  put_text("reset is not supported here\n");
}

void *memcpy(void *target, const void *source, size_t length)
{
  uint8_t *to = target;
  const uint8_t *from = source;
  if ((((uintptr_t)to | (uintptr_t)from) & 7) == 0)
    for (; length >= 8; length -= 8, to += 8, from += 8)
      *(uint64_t *)to = *(const uint64_t *)from;
  while (length--)
    *to++ = *from++;
  return target;
}

void *memset(void *target, int value, size_t length)
{
  uint8_t *to = target;
  uint64_t word = (uint8_t)value * 0x0101010101010101UL;
  for (; length && ((uintptr_t)to & 7); length--)
    *to++ = (uint8_t)value;
  for (; length >= 8; length -= 8, to += 8)
    *(uint64_t *)to = word;
  while (length--)
    *to++ = (uint8_t)value;
  return target;
}
