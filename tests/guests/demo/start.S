# Entry in S mode: a0 = hart, a1 = device tree. One hart, no paging, interrupts only end WFI.
  .section .text.start, "ax"
  .globl _start
_start:
  la sp, stack_top
  la t0, bss_start
  la t1, bss_end
1:
  bgeu t0, t1, 2f
  sd zero, 0(t0)
  addi t0, t0, 8
  j 1b
2:
  la t0, trap_entry
  csrw stvec, t0
  tail guest_main

# An access that nobody answers is noted and skipped, so that peek, poke and fuzz go on.
  .balign 4
  .globl trap_entry
trap_entry:
  addi sp, sp, -32
  sd t0, 0(sp)
  sd t1, 8(sp)
  csrr t0, scause
  la t1, trap_cause
  sd t0, 0(t1)
  csrr t0, sepc
  lhu t1, 0(t0)
  andi t1, t1, 3
  addi t1, t1, -3
  addi t0, t0, 2
  bnez t1, 3f
  addi t0, t0, 2
3:
  csrw sepc, t0
  ld t0, 0(sp)
  ld t1, 8(sp)
  addi sp, sp, 32
  sret
