/**
 * `ovis nbd`: a server of one image, and clients of any server: what qemu-nbd, nbdinfo and nbdcopy
 * do.
 *
 * @module
 */

import { type Command, InvalidArgumentError, Option } from "commander";
import type { Program } from "./mod.ts";

/** Adds the command. */
export function registerNbd(program: Program): void {
  const nbd = program.command("nbd")
    .description("Serve an image by NBD; look at, copy and map exports of any NBD server");
  addServe(nbd);
  addClients(nbd);
}

function addServe(nbd: Command): void {
  nbd.command("serve <image>")
    .description(
      "Serve an image until SIGINT or SIGTERM. IMAGE is a file name, nbd://..., or json:{...}.",
    )
    .option("--socket <path>", "listen on a unix socket")
    .option("--host <address>", "listen on this address", "127.0.0.1")
    .addOption(
      new Option("--port <number>", "listen on this TCP port; default 10809, 0: any free one")
        .argParser(parseCount).conflicts("socket"),
    )
    .option("-f, --format <format>", "the image's format; read from its start unless given")
    .option("-r, --read-only", "refuse writes", false)
    .option("--offset <bytes>", "serve what is behind it", parseSize)
    .addOption(
      new Option("--partition <number>", "serve one partition (MBR or GPT)")
        .argParser(parseCount).conflicts("offset"),
    )
    .addOption(
      new Option("--cache <mode>", "writethrough: every write is flushed; unsafe: nothing is")
        .choices(["writeback", "writethrough", "unsafe"]).default("writeback"),
    )
    .addOption(
      new Option("--discard <mode>", "what becomes of clients' trims")
        .choices(["unmap", "ignore"]).default("unmap"),
    )
    .option("-x, --export-name <name>", "by which clients open it; they may leave it out", "")
    .option("-D, --description <text>", "for people", "")
    .option("-B, --bitmap <name>", "show a dirty bitmap of the image as qemu:dirty-bitmap:NAME")
    .option("-A, --allocation-depth", "show qemu:allocation-depth", false)
    .option("-e, --shared <count>", "clients at the same time", parseCount)
    .option("--once", "end when the last client has left", false)
    .addOption(
      new Option("--tls <mode>", "whether clients may or must use TLS (TCP only)")
        .choices(["off", "allowed", "required"]).default("off"),
    )
    .option(
      "--tls-certificates <folder>",
      "with server-cert.pem, server-key.pem, and ca-cert.pem for --tls-verify-peer",
    )
    .option("--tls-verify-peer", "clients must show a certificate that ca-cert.pem signed", false)
    .action(async (image, options) => {
      const { serveImage } = await import("./nbd/serve.ts");
      await serveImage(image, options);
    });
}

function addClients(nbd: Command): void {
  const withTls = (command: Command) =>
    command.option(
      "--tls-certificates <folder>",
      "for nbds://: ca-cert.pem, and client-cert.pem with client-key.pem where they are needed",
    ).option("--tls-hostname <name>", "of the server's certificate; the address unless given");
  withTls(nbd.command("info <uri>"))
    .description("show what a server says of an export, as nbdinfo does")
    .option("--json", "for programs", false)
    .option("--size", "the size alone", false)
    .option("--list", "all exports of the server", false)
    .action(async (uri, options) => {
      const { showInfo } = await import("./nbd/info.ts");
      await showInfo(uri, options);
    });
  withTls(nbd.command("map <uri>"))
    .description("show a map of an export, as nbdinfo --map does")
    .option("--context <name>", "base:allocation, qemu:dirty-bitmap:NAME ...", "base:allocation")
    .option("--json", "for programs", false)
    .option("--totals", "bytes of each kind instead of areas", false)
    .action(async (uri, options) => {
      const { showMap } = await import("./nbd/map.ts");
      await showMap(uri, options);
    });
  withTls(nbd.command("copy <source> <destination>"))
    .description("copy between exports and files, as nbdcopy does; null: is a destination too")
    .option("-C, --connections <count>", "connections to a server that allows several", parseCount)
    .option("-R, --requests <count>", "requests in flight on a connection", parseCount)
    .option("--destination-is-zero", "holes need not be written", false)
    .option("--allocated", "write zeroes instead of making holes", false)
    .option("--flush", "end with what was written on stable storage", false)
    .option("-p, --progress", "show progress", false)
    .action(async (source, destination, options) => {
      const { copy } = await import("./nbd/copy.ts");
      await copy(source, destination, options);
    });
}

const UNITS: Readonly<Record<string, number>> = { "": 1, k: 2 ** 10, m: 2 ** 20, g: 2 ** 30 };

function parseSize(text: string): number {
  const match = /^(\d+)([kmg]?)$/i.exec(text);
  const size = Number(match?.[1]) * (UNITS[(match?.[2] ?? "").toLowerCase()] ?? NaN);
  if (!Number.isSafeInteger(size)) throw new InvalidArgumentError("expected bytes: 512, 64K, 1M");
  return size;
}

function parseCount(text: string): number {
  const count = Number(text);
  if (!/^\d+$/.test(text) || count > 65_535) throw new InvalidArgumentError("expected a number");
  return count;
}
