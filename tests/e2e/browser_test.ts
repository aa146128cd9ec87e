/**
 * A real browser reads a running machine's frozen disk, with the library that the service hands
 * out.
 */
import { assertEquals } from "@std/assert";
import { TestBrowser } from "../support/browser.ts";
import { needs } from "../support/clients.ts";
import { type FleecingAnswer, Service, ServiceConsole } from "../support/service.ts";

const MiB = 1024 * 1024;
const DISK_BYTES = 4 * MiB;

Deno.test({
  name: "a browser reads a snapshot over WebSocket while the guest goes on writing",
  ...needs("chromium"),
  async fn() {
    const folder = await Deno.makeTempDir();
    try {
      await using service = await Service.start(folder);
      await service.call("POST", "/v1/vms", {
        name: "web",
        image: "demo",
        memoryBytes: 32 * MiB,
        disks: [{ name: "disk0", sizeBytes: DISK_BYTES }],
      });
      await using guest = new ServiceConsole(service, "web");
      await guest.waitFor(/demo> /);
      await guest.demo("stress 0 1 1000");
      const before = /[0-9a-f]{64}/.exec(await guest.demo("hash 0"))?.[0];
      const { exports: [view] } = await service.call<FleecingAnswer>(
        "POST",
        "/v1/vms/web/fleecings",
        {},
      );
      const { ticket } = await service.call<{ ticket: string }>(
        "POST",
        `/v1/exports/${view?.name}/tickets`,
      );
      const writes = guest.demo("stress 0 2 20000");
      await using browser = await TestBrowser.start();
      const page = await browser.context.newPage();
      await page.goto(`${service.url}/`);
      // Runs in the page, so it can use nothing from here but its argument.
      const seen = await page.evaluate(async ({ path, ticket }) => {
        const library = "/client/client.js";
        const { connect } = await import(library);
        const disk = await connect(path, { ticket });
        const bytes = await new Response(disk.stream()).arrayBuffer();
        await disk.close();
        const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
        const again = await connect(path, { ticket }).then(() => "let in", () => "refused");
        return {
          sizeBytes: disk.sizeBytes,
          hash: [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join(""),
          again,
        };
      }, { path: `/v1/exports/${view?.name}/nbd`, ticket });
      assertEquals(seen, { sizeBytes: DISK_BYTES, hash: before, again: "refused" });
      await writes;
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
});
