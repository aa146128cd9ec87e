/* The prompt and its commands. Numbers are decimal, 0x hexadecimal, with K, M or G behind them. */
#include "guest.h"

#define MAX_WORDS 6
#define DEPTH 8

static uint8_t buffers[DEPTH][MAX_REQUEST_BYTES] __attribute__((aligned(4096)));
static bool is_failed; /* the command printed an error */

static void fail(const char *text)
{
  is_failed = true;
  put_text("error: ");
  put_text(text);
  put_char('\n');
}

static bool equal(const char *a, const char *b)
{
  while (*a && *a == *b)
    a++, b++;
  return *a == *b;
}

static bool parse_number(const char *text, uint64_t *value)
{
  unsigned base = 10;
  bool any = false;
  *value = 0;
  if (text[0] == '0' && text[1] == 'x')
    base = 16, text += 2;
  for (; *text; text++) {
    unsigned digit;
    if (*text >= '0' && *text <= '9')
      digit = (unsigned)(*text - '0');
    else if (base == 16 && (*text | 32) >= 'a' && (*text | 32) <= 'f')
      digit = (unsigned)((*text | 32) - 'a') + 10;
    else
      break;
    *value = *value * base + digit;
    any = true;
  }
  int shift = *text == 'K' ? 10 : *text == 'M' ? 20 : *text == 'G' ? 30 : 0;
  if (shift)
    *value <<= shift, text++;
  return any && *text == 0;
}

/* Reads the arguments DISK OFFSET LENGTH; offset and length default to the whole disk. */
static bool parse_range(int argc, char **argv, uint64_t *disk, uint64_t *offset, uint64_t *length)
{
  if (argc < 2 || !parse_number(argv[1], disk) || *disk >= disk_count())
    return fail("no such disk"), false;
  *offset = 0;
  *length = disk_bytes((unsigned)*disk);
  if (argc > 2 && !parse_number(argv[2], offset))
    return fail("offset is not a number"), false;
  if (argc > 2)
    *length -= *offset;
  if (argc > 3 && !parse_number(argv[3], length))
    return fail("length is not a number"), false;
  if (*offset % 512 || *length % 512)
    return fail("offset and length are multiples of 512"), false;
  return true;
}

static bool check_status(uint8_t status)
{
  if (status == 0)
    return true;
  fail(status == 1 ? "I/O error" : status == 2 ? "unsupported" : "strange status");
  return false;
}

/* Runs `operation` over the range in pieces, DEPTH at once; `prepare` fills a write's buffer. */
static bool run_range(unsigned disk, enum disk_operation operation, uint64_t offset,
                      uint64_t length, uint32_t piece)
{
  unsigned in_flight = 0;
  unsigned next = 0;
  uint8_t status = 0;
  bool ok = true;
  while ((length && ok) || in_flight) {
    if (length && ok && in_flight < DEPTH) {
      uint32_t bytes = length < piece ? (uint32_t)length : piece;
      disk_submit(disk, operation, offset / 512, buffers[next++ % DEPTH], bytes);
      offset += bytes, length -= bytes, in_flight++;
      continue;
    }
    disk_wait_any(disk, &status);
    in_flight--;
    ok = ok && check_status(status);
  }
  return ok;
}

static void print_rate(uint64_t bytes, uint64_t requests, uint64_t start)
{
  uint64_t us = (read_time() - start) / 10 + 1;
  put_decimal(bytes), put_text(" bytes in "), put_decimal(us), put_text(" us, ");
  put_decimal(bytes / us), put_text(" MB/s, ");
  put_decimal(requests * 1000000 / us), put_text(" requests/s\n");
}

static void command_disks(void)
{
  for (unsigned i = 0; i < disk_count(); i++) {
    put_decimal(i), put_text(": "), put_decimal(disk_bytes(i));
    put_text(" bytes, serial "), put_text(disk_serial(i)), put_char('\n');
  }
}

static void command_read(int argc, char **argv)
{
  uint64_t disk, offset, length;
  if (!parse_range(argc, argv, &disk, &offset, &length))
    return;
  if (length > 4096)
    return fail("at most 4096 bytes");
  if (!check_status(disk_run((unsigned)disk, DISK_READ, offset / 512, buffers[0], (uint32_t)length)))
    return;
  for (uint64_t i = 0; i < length; i++) {
    if (i % 32 == 0)
      put_hex(offset + i, 10), put_text(": ");
    put_hex(buffers[0][i], 2);
    if (i % 32 == 31)
      put_char('\n');
  }
}

static void command_write(int argc, char **argv)
{
  uint64_t disk, offset, length;
  if (argc != 4)
    return fail("write DISK OFFSET TEXT");
  if (!parse_range(3, argv, &disk, &offset, &length))
    return;
  memset(buffers[0], 0, 512);
  for (unsigned i = 0; argv[3][i] && i < 512; i++)
    buffers[0][i] = (uint8_t)argv[3][i];
  check_status(disk_run((unsigned)disk, DISK_WRITE, offset / 512, buffers[0], 512));
}

static void command_fill(int argc, char **argv)
{
  uint64_t disk, offset, length, byte;
  if (argc != 5 || !parse_number(argv[4], &byte) || byte > 255)
    return fail("fill DISK OFFSET LENGTH BYTE");
  if (!parse_range(argc, argv, &disk, &offset, &length))
    return;
  for (unsigned i = 0; i < DEPTH; i++)
    memset(buffers[i], (int)byte, MAX_REQUEST_BYTES);
  uint64_t start = read_time();
  if (run_range((unsigned)disk, DISK_WRITE, offset, length, MAX_REQUEST_BYTES))
    print_rate(length, (length + MAX_REQUEST_BYTES - 1) / MAX_REQUEST_BYTES, start);
}

/* zero, discard: one request for every 64 MiB; load: reads and forgets, for timing */
static void command_range(int argc, char **argv, enum disk_operation operation, uint32_t piece)
{
  uint64_t disk, offset, length;
  if (!parse_range(argc, argv, &disk, &offset, &length))
    return;
  uint64_t start = read_time();
  if (run_range((unsigned)disk, operation, offset, length, piece))
    print_rate(length, (length + piece - 1) / piece, start);
}

static void command_flush(int argc, char **argv)
{
  uint64_t disk, offset, length;
  if (parse_range(argc, argv, &disk, &offset, &length))
    check_status(disk_run((unsigned)disk, DISK_FLUSH, 0, NULL, 0));
}

static void command_hash(int argc, char **argv)
{
  uint64_t disk, offset, length;
  struct sha256 hash;
  uint8_t digest[32];
  if (!parse_range(argc, argv, &disk, &offset, &length))
    return;
  sha256_init(&hash);
  while (length) {
    uint32_t bytes = length < MAX_REQUEST_BYTES ? (uint32_t)length : MAX_REQUEST_BYTES;
    if (!check_status(disk_run((unsigned)disk, DISK_READ, offset / 512, buffers[0], bytes)))
      return;
    sha256_add(&hash, buffers[0], bytes);
    offset += bytes, length -= bytes;
  }
  sha256_end(&hash, digest);
  put_text("sha256 ");
  for (int i = 0; i < 32; i++)
    put_hex(digest[i], 2);
  put_char('\n');
}

static uint64_t random_state;

static uint64_t next_random(void) /* xorshift64* */
{
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return random_state * 0x2545f4914f6cdd1dUL;
}

/* Random requests, DEPTH at once, of aligned blocks; a write's content is told by seed and place. */
static void stress(int argc, char **argv, enum disk_operation operation)
{
  uint64_t disk, seed, requests, bytes = 4096;
  if (argc < 4 || !parse_number(argv[1], &disk) || disk >= disk_count() ||
      !parse_number(argv[2], &seed) || !parse_number(argv[3], &requests) ||
      (argc > 4 && !parse_number(argv[4], &bytes)))
    return fail("stress|load DISK SEED COUNT [BYTES]");
  if (bytes == 0 || bytes % 512 || bytes > MAX_REQUEST_BYTES || bytes > disk_bytes((unsigned)disk))
    return fail("BYTES is a multiple of 512, at most 256K");
  random_state = seed * 0x9e3779b97f4a7c15UL + 1;
  uint64_t blocks = disk_bytes((unsigned)disk) / bytes;
  uint64_t start = read_time();
  uint64_t left = requests;
  unsigned in_flight = 0;
  bool ok = true;
  uint8_t status;
  int slot_buffer[16];
  bool is_busy[DEPTH] = {false};
  while ((left && ok) || in_flight) {
    if (left && ok && in_flight < DEPTH) {
      unsigned buffer = 0;
      while (is_busy[buffer])
        buffer++;
      uint64_t sector = next_random() % blocks * (bytes / 512);
      uint64_t word = next_random();
      if (operation == DISK_WRITE)
        for (uint64_t i = 0; i < bytes; i += 512)
          *(uint64_t *)(buffers[buffer] + i) = word ^ (sector + i / 512);
      int slot = disk_submit((unsigned)disk, operation, sector, buffers[buffer], (uint32_t)bytes);
      slot_buffer[slot] = (int)buffer;
      is_busy[buffer] = true;
      left--, in_flight++;
      continue;
    }
    is_busy[slot_buffer[disk_wait_any((unsigned)disk, &status)]] = false;
    in_flight--;
    ok = ok && check_status(status);
    if (poll_char() == 3) /* control-C */
      requests -= left, left = 0;
  }
  if (ok)
    print_rate(requests * bytes, requests, start);
}

static void command_peek(int argc, char **argv, bool is_poke)
{
  uint64_t address, size, value = 0;
  if (argc != (is_poke ? 4 : 3) || !parse_number(argv[1], &address) ||
      !parse_number(argv[2], &size) || (is_poke && !parse_number(argv[3], &value)))
    return fail("peek ADDRESS SIZE; poke ADDRESS SIZE VALUE");
  trap_cause = NO_TRAP;
  switch (size) {
  case 1: is_poke ? (void)(*(volatile uint8_t *)address = (uint8_t)value) : (void)(value = *(volatile uint8_t *)address); break;
  case 2: is_poke ? (void)(*(volatile uint16_t *)address = (uint16_t)value) : (void)(value = *(volatile uint16_t *)address); break;
  case 4: is_poke ? (void)(*(volatile uint32_t *)address = (uint32_t)value) : (void)(value = *(volatile uint32_t *)address); break;
  case 8: is_poke ? (void)(*(volatile uint64_t *)address = value) : (void)(value = *(volatile uint64_t *)address); break;
  default: return fail("SIZE is 1, 2, 4 or 8");
  }
  if (trap_cause != NO_TRAP) {
    put_text("trap, cause "), put_decimal(trap_cause), put_char('\n');
  } else if (!is_poke) {
    put_text("0x"), put_hex(value, (int)size * 2), put_char('\n');
  }
}

/* Nonsense into every device register but the finisher's, whose use ends the machine; the console
 * comes last in the map and gets its registers back afterwards. */
static void command_fuzz(int argc, char **argv)
{
  static const struct { uint64_t base, length; } devices[] = {
    {0x00101000, 0x1000}, {0x02000000, 0x10000}, {0x0c000000, 0x210000},
    {0x10001000, 0x8000}, {0x10000000, 0x100}};
  uint64_t seed, steps, traps = 0;
  if (argc != 3 || !parse_number(argv[1], &seed) || !parse_number(argv[2], &steps))
    return fail("fuzz SEED STEPS");
  random_state = seed * 0x9e3779b97f4a7c15UL + 1;
  for (uint64_t i = 0; i < steps; i++) {
    uint64_t random = next_random();
    unsigned device = (unsigned)(random % 5);
    uint64_t address = devices[device].base + (random >> 8) % devices[device].length;
    uint64_t value = next_random();
    if (random & 1 << 6)
      value &= 0xff;
    trap_cause = NO_TRAP;
    switch (random >> 4 & 3) {
    case 0: *(volatile uint8_t *)address = (uint8_t)value; break;
    case 1: *(volatile uint32_t *)(address & ~3UL) = (uint32_t)value; break;
    case 2: *(volatile uint64_t *)(address & ~7UL) = value; break;
    default: (void)*(volatile uint32_t *)(address & ~3UL); break;
    }
    traps += trap_cause != NO_TRAP;
  }
  volatile uint8_t *uart = (volatile uint8_t *)0x10000000UL;
  uart[3] = 3;
  uart[4] = 0;
  platform_init();
  console_init();
  while (poll_char() >= 0)
    ;
  disks_init();
  put_text("fuzzed "), put_decimal(steps), put_text(" steps, "), put_decimal(traps);
  put_text(" traps\n");
}

/* An integer loop of known length: its time and instructions tell the processor's speed. */
static void command_spin(int argc, char **argv)
{
  uint64_t rounds = 10000000;
  if (argc > 1 && !parse_number(argv[1], &rounds))
    return fail("spin [ROUNDS]");
  uint64_t start = read_time(), instructions = read_instret();
  uint32_t crc = 0xffffffff;
  for (uint64_t i = 0; i < rounds; i++) {
    crc ^= (uint32_t)i;
    crc = crc >> 1 ^ (0xedb88320 & -(crc & 1));
    buffers[0][crc % MAX_REQUEST_BYTES] ^= (uint8_t)crc;
  }
  instructions = read_instret() - instructions;
  uint64_t us = (read_time() - start) / 10 + 1;
  put_decimal(instructions), put_text(" instructions in "), put_decimal(us), put_text(" us, ");
  put_decimal(instructions / us), put_text(" million a second, result ");
  put_hex(crc, 8), put_char('\n');
}

static void command_help(void)
{
  put_text("disks                              the disks, with their sizes\n"
           "read DISK OFFSET LENGTH            shows up to 4096 bytes\n"
           "write DISK OFFSET TEXT             writes one sector\n"
           "fill DISK OFFSET LENGTH BYTE       fills a range\n"
           "zero | discard DISK OFFSET LENGTH  write-zeroes, discard\n"
           "flush DISK                         to stable storage\n"
           "scan DISK [OFFSET LENGTH]          reads in sequence, for timing\n"
           "hash DISK [OFFSET LENGTH]          SHA-256\n"
           "stress DISK SEED COUNT [BYTES]     random writes, eight at once\n"
           "load DISK SEED COUNT [BYTES]       random reads, eight at once\n"
           "spin [ROUNDS]                      an integer loop, for timing\n"
           "peek ADDRESS SIZE, poke ADDRESS SIZE VALUE, fuzz SEED STEPS\n"
           "echo TEXT, poweroff, reboot, help\n"
           "numbers: 4096, 0x1000, 4K, 16M, 1G\n");
}

static void run(int argc, char **argv)
{
  const char *name = argv[0];
  if (equal(name, "help")) command_help();
  else if (equal(name, "disks")) command_disks();
  else if (equal(name, "read")) command_read(argc, argv);
  else if (equal(name, "write")) command_write(argc, argv);
  else if (equal(name, "fill")) command_fill(argc, argv);
  else if (equal(name, "zero")) command_range(argc, argv, DISK_ZERO, 64 << 20);
  else if (equal(name, "discard")) command_range(argc, argv, DISK_DISCARD, 64 << 20);
  else if (equal(name, "scan")) command_range(argc, argv, DISK_READ, MAX_REQUEST_BYTES);
  else if (equal(name, "flush")) command_flush(argc, argv);
  else if (equal(name, "hash")) command_hash(argc, argv);
  else if (equal(name, "stress")) stress(argc, argv, DISK_WRITE);
  else if (equal(name, "load")) stress(argc, argv, DISK_READ);
  else if (equal(name, "spin")) command_spin(argc, argv);
  else if (equal(name, "peek")) command_peek(argc, argv, false);
  else if (equal(name, "poke")) command_peek(argc, argv, true);
  else if (equal(name, "fuzz")) command_fuzz(argc, argv);
  else if (equal(name, "echo")) put_text(argc > 1 ? argv[1] : ""), put_char('\n');
  else if (equal(name, "poweroff")) power_off(false);
  else if (equal(name, "reboot")) power_off(true);
  else fail("no such command; try help");
}

void guest_main(void)
{
  char line[256];
  char *words[MAX_WORDS];
  platform_init();
  console_init();
  disks_init();
  put_text("\nOvis demo guest, "), put_decimal(disk_count()), put_text(" disk(s). Try help.\n");
  for (;;) {
    put_text("demo> ");
    read_line(line, sizeof line);
    int count = 0;
    for (char *c = line; *c && count < MAX_WORDS;) {
      while (*c == ' ')
        *c++ = 0;
      if (*c)
        words[count++] = c;
      while (*c && *c != ' ')
        c++;
    }
    is_failed = false;
    if (count == 0)
      continue;
    run(count, words);
    put_text(is_failed ? "failed\n" : "ok\n");
  }
}
