// A real browser reads an export over NBD in a WebSocket, with the library as it is served.
import { assert, assertEquals } from "@std/assert";
import { TestBrowser } from "../support/browser.ts";
import { needs } from "../support/clients.ts";
import { directoryOf, MemoryExport } from "../support/memory_export.ts";
import { pattern } from "../support/nbd.ts";
import { LIBRARY_PATH, serveOverWebSocket } from "../support/nbd_websocket.ts";

const MiB = 1024 * 1024;

async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return [...hash].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

Deno.test({
  name: "a browser reads a disk over WebSocket",
  ...needs("chromium"),
  fn: async () => {
    const bytes = pattern(64 * MiB);
    bytes.fill(0, 8 * MiB, 40 * MiB);
    const exported = new MemoryExport(bytes, { isReadOnly: true });
    await using server = serveOverWebSocket(directoryOf(exported));
    await using browser = await TestBrowser.start();
    const page = await browser.context.newPage();
    await page.goto(server.page);
    // Runs in the page, so it can use nothing from here but its argument.
    const seen = await page.evaluate(async ({ url, library }) => {
      const { connect, NbdError } = await import(library);
      const disk = await connect(url, { ticket: "dGlja2V0" });
      const first: Uint8Array<ArrayBuffer> = await disk.read(1000, 8);
      const extents: unknown[] = [];
      for await (const extent of disk.blockStatus(0, disk.sizeBytes)) extents.push(extent);
      let read = 0;
      const stream = disk.stream({
        onProgress: (progress: { readBytes: number }) => read = progress.readBytes,
      });
      const all = await new Response(stream).arrayBuffer();
      const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", all));
      const beyond = await disk.read(disk.sizeBytes, 1).catch((error: unknown) => error);
      await disk.close();
      return {
        sizeBytes: disk.sizeBytes,
        first: [...first],
        extents,
        read,
        hash: [...hash].map((byte) => byte.toString(16).padStart(2, "0")).join(""),
        isNbdError: beyond instanceof NbdError,
      };
    }, { url: server.url, library: LIBRARY_PATH });
    assertEquals(seen, {
      sizeBytes: 64 * MiB,
      first: [...bytes.subarray(1000, 1008)],
      extents: [
        { offset: 0, length: 8 * MiB, flags: 0 },
        { offset: 8 * MiB, length: 32 * MiB, flags: 3 },
        { offset: 40 * MiB, length: 24 * MiB, flags: 0 },
      ],
      read: 32 * MiB,
      hash: await sha256(bytes),
      isNbdError: true,
    });
    assert(server.offers.includes("nbd, base64url.bearer.authorization.dGlja2V0"));
  },
});
