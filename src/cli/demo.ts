/** `ovis demo`: the main job, shown. @module */

import { Option } from "commander";
import type { Program } from "./mod.ts";

/** Adds the command. */
export function registerDemo(program: Program): void {
  program.command("demo")
    .description(
      "Start the service, boot a machine, let it write, freeze its disk, let it overwrite " +
        "everything, and read the past in three ways.",
    )
    .addOption(
      new Option("--guest <guest>", "what boots; default: Debian if it can be fetched, else demo")
        .choices(["debian", "demo"]),
    )
    .option("--keep", "leave the service running and print its address; Ctrl-C stops it")
    .action(async (options) => {
      const { demo } = await import("./demo_action.ts");
      await demo(options);
    });
}
