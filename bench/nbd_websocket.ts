/**
 * NBD over WebSocket as the service has it, a machine's frozen disk read from end to end, beside a
 * server that only sends the same frames: once by this process, once by Chromium.
 *
 * @module
 */

import { connect } from "../src/client/mod.ts";
import { TestBrowser } from "../tests/support/browser.ts";
import type { Service } from "../tests/support/service.ts";
import { freezeOurs } from "./nbd_views.ts";
import { median, type Row } from "./table.ts";

const FRAME_BYTES = 256 * 1024;
const RUNS = 5;
/** What a browser reads each time: it is ten times slower. */
const PAGE_BYTES = 64 * 1024 * 1024;
const PLAIN = new URL("./websocket_plain.ts", import.meta.url).pathname;

/** Rates of both, for both clients. */
export async function* benchWebSocket(service: Service): AsyncGenerator<Row> {
  await using frozen = await freezeOurs(service);
  const { view } = frozen;
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "--allow-net", PLAIN],
    stdout: "piped",
    stderr: "null",
  }).spawn();
  const reader = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  try {
    const { value } = await reader.read();
    const plainUrl = `ws://127.0.0.1:${Number(value)}/`;
    const megabytes = view.sizeBytes / 1e6;
    const ticket = async () => {
      const path = `/v1/exports/${view.name}/tickets`;
      return (await service.call<{ ticket: string }>("POST", path)).ticket;
    };
    const row = (client: string, ours: number, plain: number): Row => ({
      what: `NBD WebSocket to ${client}: sequential read`,
      unit: "MB/s",
      ours,
      peer: { name: "plain WebSocket", value: plain },
      aim: "0.9 of plain",
      isSmallerBetter: false,
    });
    const frames = Math.ceil(view.sizeBytes / FRAME_BYTES);
    const deno = await alternate(
      async () => megabytes / await readDisk(view.websocket, await ticket()),
      async () => megabytes / await receiveFrames(plainUrl, frames),
    );
    yield row("Deno", ...deno);
    await using browser = await TestBrowser.start();
    const page = await browser.context.newPage();
    await page.goto(service.url);
    // The service's pages may connect to nobody else.
    const plainPage = await browser.context.newPage();
    await plainPage.goto(plainUrl.replace("ws:", "http:"));
    const inPage = await alternate(
      async () => {
        const given = {
          url: view.websocket,
          ticket: await ticket(),
          library: "/client/client.js",
          length: PAGE_BYTES,
        };
        return PAGE_BYTES / 1e6 / await page.evaluate(readDiskInPage, given);
      },
      async () => {
        const given = { url: plainUrl, frames: PAGE_BYTES / FRAME_BYTES };
        return PAGE_BYTES / 1e6 / await plainPage.evaluate(receiveFramesInPage, given);
      },
    );
    yield row("Chromium", ...inPage);
  } finally {
    await reader.cancel();
    child.kill();
    await child.status;
  }
}

/** Medians of two measurements, taken in turn. */
async function alternate(
  first: () => Promise<number>,
  second: () => Promise<number>,
): Promise<[number, number]> {
  const values: [number[], number[]] = [[], []];
  for (let run = 0; run < RUNS; run++) {
    values[0].push(await first());
    values[1].push(await second());
  }
  return [median(values[0]), median(values[1])];
}

/** Seconds. */
async function readDisk(url: string, ticket: string): Promise<number> {
  const disk = await connect(url, { ticket });
  const begin = performance.now();
  for await (const _chunk of disk.chunks()) {
    // What counts is that it came.
  }
  const seconds = (performance.now() - begin) / 1000;
  await disk.close();
  return seconds;
}

function receiveFrames(url: string, frames: number): Promise<number> {
  return receiveFramesInPage({ url, frames });
}

/** Runs in the page too, so it can use nothing from here but its argument. */
function receiveFramesInPage({ url, frames }: { url: string; frames: number }): Promise<number> {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    let left = frames;
    let begin = 0;
    socket.onopen = () => {
      begin = performance.now();
      socket.send(String(frames));
    };
    socket.onmessage = () => {
      if (--left > 0) return;
      socket.close();
      resolve((performance.now() - begin) / 1000);
    };
    socket.onerror = () => reject(new Error("the WebSocket failed"));
  });
}

async function readDiskInPage(
  { url, ticket, library, length }: {
    url: string;
    ticket: string;
    library: string;
    length: number;
  },
): Promise<number> {
  const { connect } = await import(library);
  const disk = await connect(url, { ticket });
  const begin = performance.now();
  for await (const _chunk of disk.chunks({ length })) {
    // What counts is that it came.
  }
  const seconds = (performance.now() - begin) / 1000;
  await disk.close();
  return seconds;
}
