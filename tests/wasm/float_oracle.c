/*
 * Does floating-point instructions for float_test.ts: reads records of five 64-bit words from
 * standard input (operation, rounding mode, three operands), writes two words for each (result,
 * flags). Runs under qemu-riscv64 without a C library. Operations are numbered as in
 * float_reference.ts.
 */
typedef unsigned long u64;

struct request {
  u64 operation, rounding, a, b, c;
};

struct reply {
  u64 result, flags;
};

static long system_call(long number, long a, long b, long c) {
  register long a0 asm("a0") = a;
  register long a1 asm("a1") = b;
  register long a2 asm("a2") = c;
  register long a7 asm("a7") = number;
  asm volatile("ecall" : "+r"(a0) : "r"(a1), "r"(a2), "r"(a7) : "memory");
  return a0;
}

enum { SYS_READ = 63, SYS_WRITE = 64, SYS_EXIT = 93 };

/* Operands in fa0..fa2 or t0, result in fa0 or t1. */
#define CASE(number, in, instruction, out)                                          \
  case number:                                                                      \
    asm volatile("fsrm %5\n fsflags zero\n" in "\n" instruction "\n" out            \
                 "\n frflags %1\n"                                                  \
                 : "=&r"(result), "=&r"(flags)                                      \
                 : "r"(q->a), "r"(q->b), "r"(q->c), "r"(q->rounding)                \
                 : "fa0", "fa1", "fa2");                                            \
    break;

#define IN_S "fmv.w.x fa0,%2\n fmv.w.x fa1,%3\n fmv.w.x fa2,%4"
#define IN_D "fmv.d.x fa0,%2\n fmv.d.x fa1,%3\n fmv.d.x fa2,%4"
#define OUT_S "fmv.x.w %0,fa0"
#define OUT_D "fmv.x.d %0,fa0"

#define FORMAT(base, t, in, out)                                                    \
  CASE(base + 0, in, "fadd." t " fa0,fa0,fa1", out)                                 \
  CASE(base + 1, in, "fsub." t " fa0,fa0,fa1", out)                                 \
  CASE(base + 2, in, "fmul." t " fa0,fa0,fa1", out)                                 \
  CASE(base + 3, in, "fdiv." t " fa0,fa0,fa1", out)                                 \
  CASE(base + 4, in, "fsqrt." t " fa0,fa0", out)                                    \
  CASE(base + 5, in, "fmadd." t " fa0,fa0,fa1,fa2", out)                            \
  CASE(base + 6, in, "fmin." t " fa0,fa0,fa1", out)                                 \
  CASE(base + 7, in, "fmax." t " fa0,fa0,fa1", out)                                 \
  CASE(base + 8, in, "feq." t " %0,fa0,fa1", "")                                    \
  CASE(base + 9, in, "flt." t " %0,fa0,fa1", "")                                    \
  CASE(base + 10, in, "fle." t " %0,fa0,fa1", "")                                   \
  CASE(base + 11, in, "fclass." t " %0,fa0", "")                                    \
  CASE(base + 12, in, "fcvt.w." t " %0,fa0,dyn", "")                                \
  CASE(base + 13, in, "fcvt." t ".w fa0,%2", out)                                   \
  CASE(base + 14, in, "fcvt.wu." t " %0,fa0,dyn", "")                               \
  CASE(base + 15, in, "fcvt." t ".wu fa0,%2", out)                                  \
  CASE(base + 16, in, "fcvt.l." t " %0,fa0,dyn", "")                                \
  CASE(base + 17, in, "fcvt." t ".l fa0,%2,dyn", out)                               \
  CASE(base + 18, in, "fcvt.lu." t " %0,fa0,dyn", "")                               \
  CASE(base + 19, in, "fcvt." t ".lu fa0,%2,dyn", out)

static struct reply answer(const struct request *q) {
  u64 result = 0, flags = 0;
  switch (q->operation) {
    FORMAT(0, "s", IN_S, OUT_S)
    FORMAT(20, "d", IN_D, OUT_D)
    CASE(40, IN_D, "fcvt.s.d fa0,fa0,dyn", OUT_S)
    CASE(41, IN_S, "fcvt.d.s fa0,fa0", OUT_D)
    default: system_call(SYS_EXIT, 2, 0, 0);
  }
  return (struct reply){result, flags};
}

enum { BATCH = 512 };
static struct request requests[BATCH];
static struct reply replies[BATCH];

/* Reads as many bytes as there are, up to length. */
static long read_fully(char *target, long length) {
  long done = 0;
  while (done < length) {
    long got = system_call(SYS_READ, 0, (long)(target + done), length - done);
    if (got <= 0) break;
    done += got;
  }
  return done;
}

static void write_fully(const char *source, long length) {
  while (length > 0) {
    long put = system_call(SYS_WRITE, 1, (long)source, length);
    if (put <= 0) system_call(SYS_EXIT, 1, 0, 0);
    source += put;
    length -= put;
  }
}

void _start(void) {
  for (;;) {
    long count = read_fully((char *)requests, sizeof requests) / (long)sizeof *requests;
    if (count == 0) system_call(SYS_EXIT, 0, 0, 0);
    for (long i = 0; i < count; i++) replies[i] = answer(&requests[i]);
    write_fully((const char *)replies, count * (long)sizeof *replies);
  }
}
