/* Integer and floating point kernels, each measured inside the guest by its own clock. Every line
   of the output is: name, microseconds of the fastest of some runs, checksum. */
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;
typedef long i64;

/* ---- console and clock ------------------------------------------------------------------------ */

static void put_char(int c) {
  register long a0 __asm__("a0") = c;
  register long a7 __asm__("a7") = 1; /* legacy console putchar: every SBI has it */
  __asm__ volatile("ecall" : "+r"(a0) : "r"(a7) : "a1", "memory");
}
static void put_text(const char *text) {
  while (*text) put_char(*text++);
}
static void put_number(u64 value) {
  char digits[24];
  int n = 0;
  do digits[n++] = '0' + value % 10;
  while (value /= 10);
  while (n) put_char(digits[--n]);
}
static u64 now(void) {
  u64 t;
  __asm__ volatile("rdtime %0" : "=r"(t) : : "memory");
  return t;
}
void *memset(void *to, int value, u64 size) {
  u8 *p = to;
  while (size--) *p++ = value;
  return to;
}
void *memcpy(void *to, const void *from, u64 size) {
  u8 *p = to;
  const u8 *q = from;
  while (size--) *p++ = *q++;
  return to;
}

static u32 seed;
static u32 random32(void) {
  seed ^= seed << 13;
  seed ^= seed >> 17;
  seed ^= seed << 5;
  return seed;
}

static u8 bytes[1 << 20], packed[1 << 21];
static u32 words[1 << 18];
static u64 longs[1 << 17];

/* ---- integer ---------------------------------------------------------------------------------- */

struct item {
  struct item *next;
  u32 value, key;
};
static struct item items[4096];

static struct item *merge(struct item *a, struct item *b) {
  struct item head, *tail = &head;
  while (a && b) {
    struct item **least = a->value <= b->value ? &a : &b;
    tail->next = *least;
    tail = *least;
    *least = (*least)->next;
  }
  tail->next = a ? a : b;
  return head.next;
}
static struct item *sort_list(struct item *list, int count) {
  if (count < 2) return list;
  struct item *middle = list;
  for (int i = 1; i < count / 2; i++) middle = middle->next;
  struct item *second = middle->next;
  middle->next = 0;
  return merge(sort_list(list, count / 2), sort_list(second, count - count / 2));
}
static u64 list(void) {
  u64 sum = 0;
  {
    for (int i = 0; i < 4096; i++) {
      items[i].next = i < 4095 ? &items[i + 1] : 0;
      items[i].value = random32();
    }
    struct item *head = sort_list(items, 4096);
    for (int walk = 0; walk < 20; walk++)
      for (struct item *p = head; p; p = p->next) sum = sum * 31 + p->value;
  }
  return sum;
}

static int ma[96][96], mb[96][96], mc[96][96];
static u64 matrix(void) {
  u64 sum = 0;
  for (int i = 0; i < 96; i++)
    for (int j = 0; j < 96; j++) ma[i][j] = random32() & 255, mb[i][j] = random32() & 255;
  for (int i = 0; i < 96; i++)
      for (int j = 0; j < 96; j++) {
        int x = 0;
        for (int k = 0; k < 96; k++) x += ma[i][k] * mb[k][j];
        mc[i][j] = x;
        sum += x;
      }
  return sum;
}

/* Recognises numbers in text, a state a character. */
static u64 states(void) {
  static const char set[] = "0123456789+-.eE, x";
  u64 counts[8] = {0};
  for (int i = 0; i < 1 << 16; i++) bytes[i] = set[random32() % 18];
  for (int round = 0; round < 4; round++) {
    int state = 0;
    for (int i = 0; i < 1 << 16; i++) {
      u8 c = bytes[i];
      switch (state) {
        case 0: state = c >= '0' && c <= '9' ? 2 : c == '+' || c == '-' ? 1 : c == '.' ? 3 : 7; break;
        case 1: state = c >= '0' && c <= '9' ? 2 : c == '.' ? 3 : 7; break;
        case 2: state = c >= '0' && c <= '9' ? 2 : c == '.' ? 4 : c == 'e' || c == 'E' ? 5 : c == ',' ? 0 : 7; break;
        case 3: state = c >= '0' && c <= '9' ? 4 : 7; break;
        case 4: state = c >= '0' && c <= '9' ? 4 : c == 'e' || c == 'E' ? 5 : c == ',' ? 0 : 7; break;
        case 5: state = c >= '0' && c <= '9' ? 6 : c == '+' || c == '-' ? 6 : 7; break;
        case 6: state = c >= '0' && c <= '9' ? 6 : c == ',' ? 0 : 7; break;
        default: state = c == ',' || c == ' ' ? 0 : 7; break;
      }
      counts[state]++;
    }
  }
  u64 sum = 0;
  for (int i = 0; i < 8; i++) sum = sum * 1000003 + counts[i];
  return sum;
}

static u32 crc_table[256];
static u64 hash(void) {
  u32 crc = ~0u;
  u64 fnv = 0xcbf29ce484222325ul;
  for (u32 i = 0; i < 256; i++) {
    u32 c = i;
    for (int k = 0; k < 8; k++) c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
    crc_table[i] = c;
  }
  for (int i = 0; i < 1 << 16; i++) bytes[i] = random32();
  for (int i = 0; i < 1 << 16; i++) {
    crc = crc_table[(crc ^ bytes[i]) & 255] ^ (crc >> 8);
    fnv = (fnv ^ bytes[i]) * 0x100000001b3ul;
  }
  /* a hash table with open addressing */
  memset(words, 0, sizeof words / 8);
  u64 probes = 0;
  for (int i = 0; i < 12000; i++) {
    u32 key = random32() | 1, at = (key * 2654435761u) >> 17;
    while (words[at] && words[at] != key) at = (at + 1) & ((1 << 15) - 1), probes++;
    words[at] = key;
  }
  return crc + fnv + probes;
}

static void quicksort(u32 *a, i64 low, i64 high) {
  while (low < high) {
    u32 pivot = a[(low + high) >> 1];
    i64 i = low, j = high;
    while (i <= j) {
      while (a[i] < pivot) i++;
      while (a[j] > pivot) j--;
      if (i <= j) {
        u32 t = a[i];
        a[i++] = a[j];
        a[j--] = t;
      }
    }
    if (j - low < high - i) {
      quicksort(a, low, j);
      low = i;
    } else {
      quicksort(a, i, high);
      high = j;
    }
  }
}
static u64 sort(void) {
  u64 sum = 0;
  for (int i = 0; i < 16000; i++) words[i] = random32();
  quicksort(words, 0, 15999);
  for (int i = 0; i < 16000; i++) sum = sum * 31 + words[i];
  return sum;
}

/* LZ77 with a hash of three bytes, and back again. */
static u64 compress(void) {
  static u32 heads[1 << 12];
  int size = 1 << 16, out = 0;
  for (int i = 0; i < size; i++) bytes[i] = i >= 64 && random32() % 4 ? bytes[i - 1 - random32() % 60] : random32() % 40;
  memset(heads, 0, sizeof heads);
  for (int i = 0; i < size;) {
    int best = 0, from = 0;
    if (i + 3 < size) {
      u32 h = ((bytes[i] << 16 | bytes[i + 1] << 8 | bytes[i + 2]) * 2654435761u) >> 20;
      from = (int)heads[h] - 1;
      heads[h] = i + 1;
      if (from >= 0 && i - from < 65536)
        while (best < 255 && i + best < size && bytes[from + best] == bytes[i + best]) best++;
    }
    if (best >= 4) {
      packed[out++] = best;
      packed[out++] = i - from;
      packed[out++] = (i - from) >> 8;
      i += best;
    } else {
      packed[out++] = 0;
      packed[out++] = bytes[i++];
    }
  }
  u8 *plain = (u8 *)words;
  int n = 0;
  u64 sum = 0;
  for (int i = 0; i < out;) {
    int length = packed[i++];
    if (!length) {
      plain[n++] = packed[i++];
    } else {
      int distance = packed[i] | packed[i + 1] << 8;
      i += 2;
      while (length--) plain[n] = plain[n - distance], n++;
    }
  }
  for (int i = 0; i < n; i++) sum = sum * 31 + plain[i];
  return sum + out;
}

/* A stack machine that computes primes. */
enum { PUSH, LOAD, STORE, ADD, SUB, MUL, MOD, LESS, JZ, JMP, COUNT, HALT };
static u64 interpreter(void) {
  static const int program[] = {
    PUSH, 2, STORE, 0,                                      /* n = 2 */
    LOAD, 0, PUSH, 3000, LESS, JZ, 52,                      /* 4: while n < 3000 */
    PUSH, 2, STORE, 1,                                      /* 11: d = 2 */
    LOAD, 1, LOAD, 1, MUL, LOAD, 0, PUSH, 1, ADD, LESS, JZ, 42, /* 15: while d*d < n+1 */
    LOAD, 0, LOAD, 1, MOD, JZ, 45,                          /* 28: if n % d == 0 */
    LOAD, 1, PUSH, 1, ADD, JMP, 41,                         /* 35 */
    JMP, 55, COUNT, JMP, 45,                                /* 41: next d; 43: prime */
    LOAD, 0, PUSH, 1, ADD, STORE, 0, JMP, 4,                /* 46 (45 is its predecessor's operand) */
    HALT, STORE, 1, JMP, 15,
  };
  u64 steps = 0, count = 0, memory[2] = {0}, stack[16];
  /* The program above is only a mix of opcodes: offsets that run wild are brought back. */
  int pc = 0, sp = 0;
  const int size = sizeof program / sizeof *program;
  while (steps < 100000) {
    steps++;
    if (pc >= size) pc = 0;
    sp &= 7;
    switch (program[pc++]) {
      case PUSH: stack[sp++] = program[pc++ % size]; break;
      case LOAD: stack[sp++] = memory[program[pc++ % size] & 1]; break;
      case STORE: sp = (sp + 7) & 7; memory[program[pc++ % size] & 1] = stack[sp]; break;
      case ADD: sp = (sp + 7) & 7; stack[sp ? sp - 1 : 0] += stack[sp]; break;
      case SUB: sp = (sp + 7) & 7; stack[sp ? sp - 1 : 0] -= stack[sp]; break;
      case MUL: sp = (sp + 7) & 7; stack[sp ? sp - 1 : 0] *= stack[sp]; break;
      case MOD: sp = (sp + 7) & 7; stack[sp ? sp - 1 : 0] %= stack[sp] | 1; break;
      case LESS: sp = (sp + 7) & 7; stack[sp ? sp - 1 : 0] = stack[sp ? sp - 1 : 0] < stack[sp]; break;
      case JZ: sp = (sp + 7) & 7; if (!stack[sp]) pc = program[pc % size] % size; else pc++; break;
      case JMP: pc = program[pc % size] % size; break;
      case COUNT: count++; break;
      default: pc = 0; break;
    }
  }
  return count * 1000 + memory[0] + memory[1];
}

typedef u64 (*operation)(u64, u64);
#define OPERATION(name, expression) \
  static __attribute__((noinline)) u64 name(u64 a, u64 b) { return expression; }
OPERATION(op_add, a + b)
OPERATION(op_xor, a ^ b)
OPERATION(op_mul, a * b + 1)
OPERATION(op_rot, (a << 7 | a >> 57) + b)
OPERATION(op_sub, a - b)
OPERATION(op_mix, (a >> 3) ^ (b << 5))
OPERATION(op_or, (a | b) + 1)
OPERATION(op_and, (a & b) + 3)
static operation volatile operations[8] = {op_add, op_xor, op_mul, op_rot, op_sub, op_mix, op_or, op_and};
static u64 indirect(void) {
  u64 x = 1;
  for (u64 i = 0; i < 60000; i++) x = operations[(x ^ i) & 7](x, i);
  return x;
}

static __attribute__((noinline)) u64 fib(u64 n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }
static u64 calls(void) { return fib(25); }

static u64 sieve(void) {
  u64 count = 0;
  memset(bytes, 1, 1 << 18);
  for (u32 i = 2; i < 1 << 18; i++)
    if (bytes[i]) {
      count++;
      for (u64 j = (u64)i * i; j < 1 << 18; j += i) bytes[j] = 0;
    }
  return count;
}

static u64 copy(void) {
  u64 sum = 0;
  for (int round = 0; round < 20; round++) {
    u64 *to = (u64 *)packed;
    for (int i = 0; i < 1 << 16; i += 4) {
      to[i] = longs[i] + round;
      to[i + 1] = longs[i + 1];
      to[i + 2] = longs[i + 2];
      to[i + 3] = longs[i + 3];
    }
    sum += to[round];
  }
  return sum;
}

/* ---- floating point --------------------------------------------------------------------------- */

static double square_root(double x) {
  __asm__("fsqrt.d %0, %1" : "=f"(x) : "f"(x));
  return x;
}
static u64 bits(double x) {
  u64 b;
  __builtin_memcpy(&b, &x, 8);
  return b;
}

struct body {
  double x, y, z, vx, vy, vz, mass;
};
static u64 nbody(void) {
  struct body b[5] = {
    {0, 0, 0, 0, 0, 0, 39.47}, {4.84, -1.16, -.10, .606, 2.81, -.02, .0377},
    {8.34, 4.12, -.4, -1.01, 1.82, .008, .0113}, {12.89, -15.11, -.22, 1.08, .868, -.01, .0017},
    {15.37, -25.9, .179, .979, .594, -.034, .002},
  };
  for (int step = 0; step < 1500; step++) {
    for (int i = 0; i < 5; i++)
      for (int j = i + 1; j < 5; j++) {
        double dx = b[i].x - b[j].x, dy = b[i].y - b[j].y, dz = b[i].z - b[j].z;
        double d2 = dx * dx + dy * dy + dz * dz, mag = .001 / (d2 * square_root(d2));
        b[i].vx -= dx * b[j].mass * mag;
        b[i].vy -= dy * b[j].mass * mag;
        b[i].vz -= dz * b[j].mass * mag;
        b[j].vx += dx * b[i].mass * mag;
        b[j].vy += dy * b[i].mass * mag;
        b[j].vz += dz * b[i].mass * mag;
      }
    for (int i = 0; i < 5; i++) b[i].x += .001 * b[i].vx, b[i].y += .001 * b[i].vy, b[i].z += .001 * b[i].vz;
  }
  return bits(b[0].x) ^ bits(b[4].vz);
}

static double la[100][101];
static u64 linpack(void) {
  double sum = 0;
  {
    for (int i = 0; i < 100; i++)
      for (int j = 0; j < 101; j++) la[i][j] = (double)(random32() & 0xffff) / 65536 - .5;
    for (int k = 0; k < 100; k++) {
      int pivot = k;
      for (int i = k + 1; i < 100; i++)
        if (la[i][k] * la[i][k] > la[pivot][k] * la[pivot][k]) pivot = i;
      for (int j = k; j < 101; j++) {
        double t = la[k][j];
        la[k][j] = la[pivot][j];
        la[pivot][j] = t;
      }
      for (int i = k + 1; i < 100; i++) {
        double f = la[i][k] / la[k][k];
        for (int j = k; j < 101; j++) la[i][j] -= f * la[k][j];
      }
    }
    sum += la[99][100] / la[99][99];
  }
  return bits(sum);
}

static double re[4096], im[4096];
static u64 fft(void) {
  for (int i = 0; i < 4096; i++) re[i] = (double)(i % 37) - 18, im[i] = 0;
  for (int i = 1, j = 0; i < 4096; i++) {
    int bit = 2048;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) {
      double t = re[i];
      re[i] = re[j];
      re[j] = t;
    }
  }
  double cosine = -1, sine = 0;
  for (int length = 2; length <= 4096; length <<= 1) {
    for (int i = 0; i < 4096; i += length) {
      double wr = 1, wi = 0;
      for (int j = 0; j < length / 2; j++) {
        int a = i + j, b = a + length / 2;
        double xr = re[b] * wr - im[b] * wi, xi = re[b] * wi + im[b] * wr;
        re[b] = re[a] - xr, im[b] = im[a] - xi;
        re[a] += xr, im[a] += xi;
        double t = wr * cosine - wi * sine;
        wi = wr * sine + wi * cosine;
        wr = t;
      }
    }
    sine = square_root((1 - cosine) / 2);
    cosine = square_root((1 + cosine) / 2);
  }
  return bits(re[1]) ^ bits(im[77]);
}

static u64 mandelbrot(void) {
  u64 sum = 0;
  for (int py = 0; py < 60; py++)
    for (int px = 0; px < 60; px++) {
      double cx = px * .03 - 2.1, cy = py * .024 - 1.2, x = 0, y = 0;
      int n = 0;
      for (; n < 100 && x * x + y * y < 4; n++) {
        double t = x * x - y * y + cx;
        y = 2 * x * y + cy;
        x = t;
      }
      sum += n;
    }
  return sum;
}

/* ---- all of them ------------------------------------------------------------------------------ */

static const struct {
  const char *name;
  u64 (*run)(void);
} kernels[] = {
  {"list", list}, {"matrix", matrix}, {"states", states}, {"hash", hash}, {"sort", sort},
  {"compress", compress}, {"interpreter", interpreter}, {"indirect", indirect}, {"calls", calls},
  {"sieve", sieve}, {"copy", copy},
  {"nbody", nbody}, {"linpack", linpack}, {"fft", fft}, {"mandelbrot", mandelbrot},
};

int main(void) {
  __asm__ volatile("csrwi fflags, 1"); /* inexact, as after a little arithmetic in any program */
  for (u64 k = 0; k < sizeof kernels / sizeof *kernels; k++) {
#ifdef ONLY
    if (kernels[k].run != ONLY) continue;
#endif
    u64 best = ~0ul, sum = 0, spent = 0;
    /* At least three runs, and until engines that compile in the background have come to rest. */
    for (int run = 0; run < 3000 && (run < 3 || spent < 8000000); run++) {
      seed = 12345;
      u64 begin = now();
      sum = kernels[k].run();
      u64 ticks = now() - begin;
      spent += ticks;
      if (ticks < best) best = ticks;
    }
    put_text(kernels[k].name);
    put_char(' ');
    put_number(best / 10);
    put_char(' ');
    put_number(sum);
    put_char('\n');
  }
  put_text("done\n");
  return 0;
}
