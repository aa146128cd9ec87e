/**
 * The commands. A command is one file here that exports `registerX(program)`: it adds a commander
 * command with its options, cheaply; what is heavy is imported by its action. Only the file of the
 * command that was named is loaded at all.
 *
 * @module
 */

import type { Command } from "commander";

/** What commands are added to: commander's root command. */
export type Program = Command;

/** A command before it is loaded. */
export interface CommandEntry {
  /** The word that stands behind `ovis`. */
  name: string;
  /** One line of the list that `--help` shows. */
  summary: string;
  /** Imports the command's file; what it gives adds the command to the program. */
  load?: () => Promise<(program: Program) => void>;
  /** Instead, for a command that reads its words by itself: runs it with those behind its name. */
  run?: (words: readonly string[]) => Promise<void>;
}

/** All commands, in the order of `--help`. */
export const COMMANDS: readonly CommandEntry[] = [
  {
    name: "serve",
    summary: "start the service",
    load: async () => (await open<typeof import("./serve.ts")>("./serve.ts")).registerServe,
  },
  {
    name: "vm",
    summary: "list, make, start, watch, fleece and delete machines of a running service",
    load: async () => (await open<typeof import("./vm.ts")>("./vm.ts")).registerVm,
  },
  {
    name: "nbd",
    summary: "serve an image by NBD; look at, copy and map exports",
    load: async () => (await open<typeof import("./nbd.ts")>("./nbd.ts")).registerNbd,
  },
  {
    name: "storage-daemon",
    summary: "block nodes and exports without a machine, as qemu-storage-daemon",
    load: async () =>
      (await open<typeof import("./storage_daemon.ts")>("./storage_daemon.ts"))
        .registerStorageDaemon,
  },
  {
    name: "demo",
    summary: "boot a machine, freeze its disk, overwrite it, read the past",
    load: async () => (await open<typeof import("./demo.ts")>("./demo.ts")).registerDemo,
  },
  {
    name: "image",
    summary: "fetch, list and delete images that machines boot from",
    load: async () => (await open<typeof import("./image.ts")>("./image.ts")).registerImage,
  },
  {
    name: "img",
    summary: "disk images, as qemu-img handles them",
    run: async (words) =>
      await (await open<typeof import("./img.ts")>("./img.ts")).runImgCommand(words),
  },
  {
    name: "riscv-tests",
    summary: "run the official riscv-tests found in a folder",
    load: async () =>
      (await open<typeof import("./riscv_tests.ts")>("./riscv_tests.ts")).registerRiscvTests,
  },
];

/**
 * Imports a module of this folder. Of an import with a literal the runtime would read all modules
 * below before it starts, whichever command is named: some 40 ms.
 */
async function open<Module>(specifier: `./${string}.ts`): Promise<Module> {
  return await import(specifier);
}
