/* The console: a 16550 by polling for output, by interrupt for input. */
#include "guest.h"

#define UART 0x10000000UL
#define UART_IRQ 10
#define RBR 0
#define IER 1
#define FCR 2
#define LSR 5

static volatile uint8_t *const uart = (volatile uint8_t *)UART;

void console_init(void)
{
  uart[FCR] = 1;
  uart[IER] = 1; /* received data */
  enable_irq(UART_IRQ);
}

void put_char(char c)
{
  if (c == '\n')
    put_char('\r');
  while (!(uart[LSR] & 0x20))
    ;
  uart[RBR] = (uint8_t)c;
}

void put_text(const char *text)
{
  while (*text)
    put_char(*text++);
}

void put_decimal(uint64_t value)
{
  char digits[21];
  int count = 0;
  do {
    digits[count++] = (char)('0' + value % 10);
    value /= 10;
  } while (value);
  while (count)
    put_char(digits[--count]);
}

void put_hex(uint64_t value, int digits)
{
  while (digits--)
    put_char("0123456789abcdef"[(value >> (4 * digits)) & 15]);
}

int poll_char(void)
{
  return uart[LSR] & 1 ? uart[RBR] : -1;
}

void read_line(char *line, size_t size)
{
  size_t length = 0;
  for (;;) {
    int c = poll_char();
    if (c < 0) {
      wait_for_interrupt();
      continue;
    }
    if (c == '\r' || c == '\n') {
      put_char('\n');
      line[length] = 0;
      return;
    }
    if (c == 8 || c == 127) {
      if (length) {
        length--;
        put_text("\b \b");
      }
    } else if (c >= ' ' && c < 127 && length + 1 < size) {
      line[length++] = (char)c;
      put_char((char)c);
    }
  }
}
