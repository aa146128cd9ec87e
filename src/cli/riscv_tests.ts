/**
 * `ovis riscv-tests`: the official instruction tests, built by whoever wants to run them. @module
 */

import type { Program } from "./mod.ts";

/** Adds the command. */
export function registerRiscvTests(program: Program): void {
  program.command("riscv-tests <folder>")
    .description(
      "Run every program of the official riscv-tests found in a folder and below, in parallel, print " +
        "how each ended, and fail if one failed. Build them from their repository with, say, " +
        "`make -C isa XLEN=64 RISCV_PREFIX=riscv64-linux-gnu-`; with a compiler that makes " +
        "position-independent code by default (Debian's), add -fno-pie to RISCV_GCC_OPTS, or the " +
        "tests of the v environment fault for ever on any machine.",
    )
    .option("--jobs <count>", "tests at a time", String(navigator.hardwareConcurrency))
    .option(
      "--accel <how>",
      "interpreter, or translator, which then translates all that is executed",
      "interpreter",
    )
    .action(async (folder, options) => {
      const { runRiscvTests } = await import("./riscv_tests_action.ts");
      await runRiscvTests({ folder, jobs: options.jobs, accel: options.accel });
    });
}
