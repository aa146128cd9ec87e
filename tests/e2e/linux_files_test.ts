/**
 * A Linux guest writes files all along; its disk is frozen without asking it, and a browser reads
 * the files of that moment out of the mounted file system, its journal included.
 */
import { assert, assertEquals } from "@std/assert";
import { TestBrowser } from "../support/browser.ts";
import { needs } from "../support/clients.ts";
import { findDebian } from "../support/debian.ts";
import { run } from "../support/file_tree.ts";
import { type FleecingAnswer, Service, ServiceConsole } from "../support/service.ts";

const MiB = 1024 * 1024;
const debian = await findDebian();

/** In the guest: files that stay. */
const PREPARE = [
  "mount -t ext4 /dev/vda /mnt",
  "mkdir -p /mnt/keep/deep/er /mnt/busy",
  "for i in 1 2 3 4 5 6; do dd if=/dev/urandom of=/mnt/keep/f$i bs=10007 count=$((i * i)); done",
  "cp /mnt/keep/f3 /mnt/keep/deep/er/copy",
  "ln -s ../f5 /mnt/keep/deep/link",
].join(" && ");

/** In the guest: a writer that never stops. */
const WRITE_ON = "while :; do for i in 0 1 2 3 4 5 6 7; do " +
  "dd if=/dev/urandom of=/mnt/busy/$i bs=64k count=3 2>/dev/null; done; done";

/** In the guest: what stayed is gone, and its room is used again. */
const DESTROY = "rm -r /mnt/keep && dd if=/dev/zero of=/mnt/over bs=1M count=40 && sync";

/** Paths below /keep with their SHA-256, as sha256sum prints them. */
function parseSums(text: string): [string, string][] {
  const sums = [...text.matchAll(/^([0-9a-f]{64})\s+\/mnt(\/keep\S+)/gm)];
  return sums.map(([, sum = "", path = ""]): [string, string] => [path, sum]).sort();
}

Deno.test({
  name: "a browser reads files of a frozen ext4 while the Linux guest goes on writing",
  ignore: debian.ignore || needs("chromium", "mke2fs").ignore,
  async fn() {
    const folder = await Deno.makeTempDir();
    try {
      await using service = await Service.start(`${folder}/data`);
      await service.call("POST", "/v1/images", { name: "debian", cmdline: "console=ttyS0 quiet" });
      for (const [part, path] of Object.entries(debian.files)) {
        await service.putImageFile("debian", part, path);
      }
      await service.call("POST", "/v1/vms", {
        name: "linux",
        image: "debian",
        memoryBytes: 256 * MiB,
        disks: [{ name: "disk0", sizeBytes: 64 * MiB }],
        start: false,
      });
      const disk = run("find", `${folder}/data`, "-name", "disk0.raw").trim();
      run("mke2fs", "-q", "-F", "-t", "ext4", "-L", "guest", disk, "64M");
      await service.call("POST", "/v1/vms/linux/start");
      await using guest = new ServiceConsole(service, "linux");
      await guest.waitFor(/Disks: vda[^]*~ # /);
      await guest.shell(PREPARE);
      await guest.shell(`eval '(${WRITE_ON}) &'`);
      await guest.shell("sync");
      const sums = parseSums(await guest.shell("find /mnt/keep -type f | xargs sha256sum"));
      assertEquals(sums.length, 7);

      const { exports: [view] } = await service.call<FleecingAnswer>(
        "POST",
        "/v1/vms/linux/fleecings",
        {},
      );
      await guest.shell(DESTROY);
      const exportPath = `/v1/exports/${view?.name}`;
      const { ticket } = await service.call<{ ticket: string }>("POST", `${exportPath}/tickets`);
      await using browser = await TestBrowser.start();
      const page = await browser.context.newPage();
      await page.goto(`${service.url}/files`);
      // Runs in the page, so it can use nothing from here but its argument.
      const seen = await page.evaluate(async ({ path, ticket }) => {
        const library = "/client/client.js";
        const { connect, openVolume } = await import(library);
        const disk = await connect(path, { ticket });
        const volume = await openVolume(disk);
        const sums: [string, string][] = [];
        for await (const { path, node } of volume.walk("/keep")) {
          if (node.kind !== "file") continue;
          const bytes = await new Response((await volume.open(path)).stream()).arrayBuffer();
          const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
          const text = [...hash].map((byte) => byte.toString(16).padStart(2, "0")).join("");
          sums.push([path, text]);
        }
        let busyBytes = 0;
        for await (const { path } of volume.list("/busy")) {
          busyBytes += (await new Response((await volume.open(path)).stream()).bytes()).length;
        }
        const link = await volume.readLink("/keep/deep/link");
        const through = (await volume.stat("/keep/deep/link")).sizeBytes;
        await disk.close();
        return { label: volume.label, sums: sums.sort(), link, through, busyBytes };
      }, { path: `${exportPath}/nbd`, ticket });
      const { busyBytes, ...facts } = seen;
      assertEquals(facts, { label: "guest", sums, link: "../f5", through: 25 * 10007 });
      assert(busyBytes > 0, "what was being written can be read too");
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
});
