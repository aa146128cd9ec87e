/**
 * Debian's own programs in a guest give what they give on qemu-system-riscv64: the same kernel, the
 * same disk, the same script on both. It takes minutes on each, so it is run on demand, with
 * OVIS_PROGRAMS=short, or =full for Python's own regression tests and more data.
 */
import { assert, assertEquals } from "@std/assert";
import { needs } from "../support/clients.ts";
import { type DebianFiles, findDebian, testCache } from "../support/debian.ts";
import { debianRoot, setScript } from "../support/debian_root.ts";
import { Service, ServiceConsole } from "../support/service.ts";

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
  "cd /tmp",
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

/** What the script printed, up to its end, without what the kernel says. */
function outputOf(console: string): string[] {
  const end = console.indexOf("<end of script>");
  assert(end >= 0, console.slice(-2000));
  const begin = console.lastIndexOf("<script>", end);
  return console.slice(begin, end).split(/\r*\n/).filter((line) => !/^\[ *\d+\.\d+\]/.test(line));
}

function onQemu(files: DebianFiles, disk: string): string {
  const { stdout } = new Deno.Command("qemu-system-riscv64", {
    args: ["-M", "virt", "-m", "512M", "-nographic", "-kernel", files.kernel]
      .concat(["-initrd", files.initrd, "-append", "console=ttyS0 quiet root=/dev/vda"])
      .concat(["-drive", `file=${disk},format=raw,if=none,id=d,snapshot=on`])
      .concat(["-device", "virtio-blk-device,drive=d"]),
    stdin: "null",
  }).outputSync();
  return new TextDecoder().decode(stdout);
}

async function onOvis(files: DebianFiles, disk: string): Promise<string> {
  const folder = await Deno.makeTempDir();
  try {
    await using service = await Service.start(folder);
    await service.call("POST", "/v1/images", {
      name: "image",
      cmdline: "console=ttyS0 quiet root=/dev/vda",
    });
    for (const [part, path] of Object.entries(files)) {
      await service.putImageFile("image", part, path);
    }
    const sizeBytes = Deno.statSync(disk).size;
    await service.call("POST", "/v1/vms", {
      name: "vm",
      image: "image",
      memoryBytes: 512 * MiB,
      accel: "translator",
      disks: [{ name: "disk0", sizeBytes }],
      start: false,
    });
    const target = new Deno.Command("find", { args: [folder, "-name", "disk0.raw"] }).outputSync();
    const path = new TextDecoder().decode(target.stdout).trim();
    new Deno.Command("cp", { args: ["--sparse=always", disk, path] }).outputSync();
    await service.call("POST", "/v1/vms/vm/start");
    await using guest = new ServiceConsole(service, "vm");
    await guest.waitFor(/<end of script>/);
    return guest.text;
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

Deno.test({
  name: `Debian's programs print what they print on QEMU (${isFull ? "full" : "short"} script)`,
  ignore: wanted === undefined || debian.ignore ||
    needs("qemu-system-riscv64", "mke2fs", "debugfs", "dpkg-deb", "apt-get").ignore,
  async fn() {
    const disk = await debianRoot(testCache());
    setScript(disk, `echo "<script>"\n${SCRIPT}\n`);
    const theirs = onQemu(debian.files, disk);
    const ours = await onOvis(debian.files, disk);
    assertEquals(outputOf(ours), outputOf(theirs));
    assert(outputOf(ours).includes("left with 7"), ours);
    assert(!ours.includes("e3b0c44298fc1c14"), "nothing was made of nothing");
  },
});
