/**
 * Debian's own programs in a guest give what they give on qemu-system-riscv64: the same kernel, the
 * same disk, the same script on both. It takes minutes on each, so it is run on demand, with
 * OVIS_PROGRAMS=short, or =full for Python's own regression tests and more data.
 */
import { assert, assertEquals } from "@std/assert";
import type { ConsoleDialogue } from "../../src/cli/console_dialogue.ts";
import { needs } from "../support/clients.ts";
import { findDebian, testCache } from "../support/debian.ts";
import { debianRoot } from "../support/debian_root.ts";
import { startOurs, startQemu } from "../support/guests.ts";
import { Service } from "../support/service.ts";

const MiB = 1024 * 1024;
const wanted = Deno.env.get("OVIS_PROGRAMS");
const isFull = wanted === "full";
const debian = await findDebian();

/** Bytes that compress somewhat, the same on every machine. */
const PATTERN = `gawk 'BEGIN { x = 1; for (i = 0; i < ${isFull ? 2_500_000 : 10_000}; i++) ` +
  `{ x = (x * 1103515245 + 12345) % 2147483648; printf "%d line %d\\n", x, i % 97 } }'`;

const PYTHON = isFull
  ? "python3 -m test test_json test_re test_struct test_math test_decimal 2>&1 | " +
    "grep -E '^(Result|Total tests)'"
  : "python3 -c 'import json, math; print(json.dumps([math.sin(x) for x in range(200)]))'";

const SCRIPT = [
  "echo '<script>'",
  `${PATTERN} > plain`,
  "sha256sum plain",
  "for tool in gzip xz zstd; do",
  "  cat plain | $tool -q -c -6 > packed; sha256sum packed",
  "  $tool -q -d -c < packed | sha256sum",
  "done",
  "i=0; while [ $i -lt 2000 ]; do i=$((i + 1)); done; echo counted $i",
  "for algorithm in sha256 sha512 md5 blake2b512; do openssl dgst -$algorithm plain; done",
  "openssl enc -aes-128-cbc -K 00112233445566778899aabbccddeeff -iv 0102030405060708090a0b0c0d0e0f10 " +
  "-in plain | sha256sum",
  "printf 'create table t(a, b); with recursive c(x) as (select 1 union all select x + 1 from c " +
  "where x < 5000) insert into t select x, x * x %% 1009 from c; " +
  "select b, count(*), sum(a) from t group by b order by 2 desc, 1 limit 5;' | sqlite3",
  PYTHON,
  "cat > sum.c << 'END'",
  "#include <stdio.h>",
  "#include <math.h>",
  "int main(void) { double s = 0; for (int i = 1; i < 200000; i++) s += sin(i) / i; " +
  'printf("%.17g\\n", s); return 7; }',
  "END",
  "gcc -O2 -o sum sum.c -lm && ./sum; echo left with $?",
  ...(isFull ? ["openssl speed -seconds 1 sha256 2>&1 | grep -c sha256"] : []),
].join("\n");

/** What the script printed, without what the kernel says. */
async function outputOf(guest: ConsoleDialogue): Promise<string[]> {
  await guest.waitFor(/<shell>/);
  await guest.type(`stty -echo; cat > script << 'END OF SCRIPT'\n${SCRIPT}\nEND OF SCRIPT\n`);
  await guest.type(`sh script; exit\n`);
  await guest.waitFor(/<end of shell>/);
  const begin = guest.text.lastIndexOf("<script>");
  assert(begin >= 0, guest.text.slice(-2000));
  const end = guest.text.indexOf("<end of shell>", begin);
  return guest.text.slice(begin, end).split(/\r*\n/).filter((line) =>
    !/^\[ *\d+\.\d+\]/.test(line)
  );
}

Deno.test({
  name: `Debian's programs print what they print on QEMU (${isFull ? "full" : "short"} script)`,
  ignore: wanted === undefined || debian.ignore ||
    needs("qemu-system-riscv64", "mke2fs", "debugfs", "dpkg-deb", "apt-get").ignore,
  async fn() {
    const rootPath = await debianRoot(testCache());
    const files = { ...debian.files, cmdline: "console=ttyS0 quiet root=/dev/vda" };
    const options = { memoryBytes: 512 * MiB, rootPath };
    await using qemu = startQemu(files, options);
    const theirs = await outputOf(qemu);
    const folder = await Deno.makeTempDir();
    try {
      await using service = await Service.start(folder, ["--allow-folder", testCache()]);
      await using guest = await startOurs(service, files, { ...options, accel: "translator" });
      const ours = await outputOf(guest);
      assertEquals(ours, theirs);
      assert(ours.includes("left with 7"), ours.join("\n"));
      assert(!ours.join().includes("e3b0c44298fc1c14"), "nothing was made of nothing");
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
});
