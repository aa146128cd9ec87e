/** What `ovis serve` does. @module */

import { type PartialSettings, resolveSettings, SettingsError } from "../config.ts";
import { setUpLogging } from "./logging.ts";
import { printLine } from "./output.ts";
import { startService } from "./run_service.ts";
import { INTERRUPTED, waitForSignal } from "./signals.ts";

/**
 * Starts the service and stops it in order at SIGTERM or SIGINT; a second signal ends it at once.
 */
export async function serve(flags: PartialSettings, configPath: string | null): Promise<void> {
  const settings = resolveSettings({
    flags,
    environment: (name) => Deno.env.get(name),
    file: configPath === null ? {} : await readConfig(configPath),
  });
  const log = await setUpLogging(settings.logLevel);
  // A bug in the service of one client must not take everybody's machines down.
  addEventListener("unhandledrejection", (event) => {
    event.preventDefault();
    log.error("not handled: {reason}", { reason: event.reason });
  });
  const stopped = waitForSignal();
  const running = await startService(settings, log);
  const tokenPath = `${running.service.folder.path}/token`;
  if (running.isTokenNew) {
    printLine(`token: ${running.token}`);
    printLine(`(shown this once; it stands in ${tokenPath})`);
  } else if (settings.auth && settings.token === null) {
    printLine(`the token stands in ${tokenPath}`);
  }
  printLine(`Ovis listens on ${running.url}`);
  const signal = await stopped;
  log.info("{signal}: stopping; a second signal ends at once", { signal });
  for (const name of ["SIGTERM", "SIGINT"] as const) {
    Deno.addSignalListener(name, () => Deno.exit(INTERRUPTED));
  }
  await running.stop();
  log.info("stopped");
  Deno.exit(0);
}

async function readConfig(path: string): Promise<PartialSettings> {
  try {
    return JSON.parse(await Deno.readTextFile(path));
  } catch (error) {
    throw new SettingsError(`${path}: ${error instanceof Error ? error.message : error}`);
  }
}
