/* S mode, as a kernel is started: 1 GiB pages that map what is there to itself (Sv39), floating
   point on, a stack, main. */
    .section .text.start
    .globl _start
_start:
    la      t0, bss_start
    la      t1, bss_end
1:  sd      zero, 0(t0)
    addi    t0, t0, 8
    bltu    t0, t1, 1b
    la      sp, stack_end
    la      t0, page_table
    li      t1, 0xcf                    /* V R W X A D */
    sd      t1, 0(t0)
    li      t1, 0x200000cf              /* 2 GiB on: RAM */
    sd      t1, 16(t0)
    srli    t0, t0, 12
    li      t1, 8
    slli    t1, t1, 60
    or      t0, t0, t1
    sfence.vma
    csrw    satp, t0
    sfence.vma
    li      t0, 0x6000
    csrs    sstatus, t0
    call    main
2:  li      a7, 0x53525354              /* SBI system reset: shut down */
    li      a6, 0
    li      a0, 0
    li      a1, 0
    ecall
    j       2b

    .section .bss
    .balign 4096
page_table:
    .skip   4096
    .balign 16
    .skip   65536
stack_end:
