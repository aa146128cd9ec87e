/**
 * `ovis storage-daemon`: the block layer and its exports without a machine, with the command line of
 * qemu-storage-daemon, so that scripts for that one run.
 *
 * @module
 */

import type { Program } from "./mod.ts";

/** Adds the command. Its options are read one after the other by the action: their order counts. */
export function registerStorageDaemon(program: Program): void {
  // What stands behind the command is the command's, `--version` and `--help` too.
  program.enablePositionalOptions();
  program.command("storage-daemon")
    .description("block nodes and exports without a machine, as qemu-storage-daemon")
    .usage("[options]  (--help lists them)")
    .helpOption(false)
    .allowUnknownOption()
    .passThroughOptions()
    .argument("[options...]", "those of qemu-storage-daemon")
    .action(async (options: string[]) => {
      const { runStorageDaemon } = await import("./storage_daemon_action.ts");
      await runStorageDaemon(options);
    });
}
