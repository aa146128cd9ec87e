import { assertEquals, assertMatch, assertThrows } from "@std/assert";
import { formatSize, parseSize } from "../../src/cli/vm_text.ts";
import { Service, TOKEN } from "../support/service.ts";

const ROOT = new URL("../..", import.meta.url).pathname;

Deno.test("parseSize() and formatSize() know K, M, G and T", () => {
  assertEquals(["512", "4k", "64M", "2G", "1T"].map(parseSize), [
    512,
    4096,
    67108864,
    2147483648,
    1099511627776,
  ]);
  assertEquals([0, 512, 4096, 67108864, 1610612736].map(formatSize), [
    "0",
    "512",
    "4K",
    "64M",
    "1G",
  ]);
  for (const text of ["", "M", "-1", "1.5G", "1X", "1MM"]) assertThrows(() => parseSize(text));
});

Deno.test("ovis vm makes, shows, fleeces and deletes machines of a service", async () => {
  const folder = await Deno.makeTempDir({ prefix: "ovis-cli-" });
  try {
    await using service = await Service.start(folder);
    const vm = async (...args: string[]) => {
      const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
        args: ["run", "-P=ovis", "main.ts", "vm", "--url", service.url, ...args],
        cwd: ROOT,
        env: { OVIS_TOKEN: TOKEN },
        stdin: "null",
      }).output();
      const decoder = new TextDecoder();
      return { code, out: decoder.decode(stdout), error: decoder.decode(stderr) };
    };
    const made = await vm("create", "t1", "--disk", "a:1M", "--disk", "b:512", "--memory", "32M");
    assertEquals(made.out, "t1 is running\n", made.error);
    assertMatch((await vm("list")).out, /^NAME .*\nt1 +running +demo +32M +a:1M,b:512\n$/);
    const view = await vm("fleece", "t1", "--name", "f1", "--disk", "b");
    assertMatch(view.out, /^f1\n {2}b {2}nbd:\/\/127\.0\.0\.1:\d+\/t1-b-f1\n/);
    assertMatch((await vm("fleecings", "t1")).out, /f1 +active +b +t1-b-f1 +0\n$/);
    assertEquals((await vm("unfleece", "t1", "f1")).out, "f1 is gone\n");
    await vm("fleece", "t1", "--name", "f2", "--disk", "a", "--checkpoint", "c1");
    assertEquals((await vm("complete", "t1", "f2")).out, "f2 is gone: success\n");
    assertMatch((await vm("checkpoint", "list", "t1")).out, /\nc1 +\S+ +a +0\n$/);
    assertEquals((await vm("checkpoint", "delete", "t1", "c1")).out, "c1 is gone\n");
    assertEquals((await vm("snapshot", "t1", "--disk", "a")).code, 0);
    const copied = await vm("job", "backup", "t1:a", "copy");
    assertEquals(copied.out, "backup-1 is concluded\n", copied.error);
    assertMatch(copied.error, /backup of t1:a \(/);
    assertMatch((await vm("job", "list")).out, /\nbackup-1 +backup +t1:a +copy +concluded/);
    assertEquals((await vm("disk", "resize", "t1:a", "2M")).out, "t1:a has 2M\n");
    assertEquals((await vm("bitmap", "add", "t1:a", "b0")).out, "b0 is added\n");
    assertMatch((await vm("bitmap", "list", "t1:a")).out, /\nb0 +0 +64K +recording,persistent\n$/);
    assertEquals((await vm("disk", "create", "d1", "1M", "--format", "qcow2")).out, "d1 is made\n");
    const content = `${folder}/content`;
    await Deno.writeFile(content, new Uint8Array(1 << 20).fill(7));
    assertEquals((await vm("disk", "upload", "d1", content)).out, "d1 has it\n");
    await vm("disk", "download", "d1", `${content}.out`);
    assertEquals(await Deno.readFile(`${content}.out`), await Deno.readFile(content));
    assertMatch((await vm("disk", "list")).out, /\nd1 +1M +qcow2\n(.*\n)*t1:a +2M +qcow2 +t1\n/);
    assertEquals((await vm("disk", "delete", "d1")).out, "d1 is gone\n");
    assertEquals((await vm("pause", "t1")).out, "t1 is paused\n");
    assertEquals((await vm("delete", "t1")).out, "t1 is gone\n");
    const gone = await vm("show", "t1");
    assertEquals(gone.code, 1);
    assertMatch(gone.error, /ovis: No such machine: there is no machine named t1/);
    const unknown = await vm("explode", "t1");
    assertEquals(unknown.code, 1);
    assertMatch(unknown.error, /unknown command 'explode'/);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
