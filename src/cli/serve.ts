/** `ovis serve`: the service. @module */

import { InvalidArgumentError } from "commander";
import { environmentName, type PartialSettings } from "../config.ts";
import type { Program } from "./mod.ts";

/** Adds the command. */
export function registerServe(program: Program): void {
  const help = (key: string, text: string) => `${text} (${environmentName(key)})`;
  program.command("serve")
    .description(
      "Start the service. Settings come from the command line, else from the environment (in " +
        "brackets), else from the file of --config.",
    )
    .option("--host <address>", help("host", "where to listen, default 127.0.0.1"))
    .option("--port <number>", help("port", "default 8080; 0: any free one"), parseNumber)
    .option(
      "--data <folder>",
      help("data", "where to keep everything, default ~/.local/share/ovis"),
    )
    .option("--token <token>", help("token", "instead of the one kept in the data folder"))
    .option("--no-auth", help("auth", "everybody may do everything; on loopback only"))
    .option("--nbd-host <address>", help("nbdHost", "where NBD listens, default 127.0.0.1"))
    .option("--nbd-tls <mode>", help("nbdTls", "off, allowed or required"))
    .option(
      "--nbd-tls-certificates <folder>",
      help("nbdTlsCertificates", "with server-cert.pem, server-key.pem, ca-cert.pem"),
    )
    .option("--nbd-tls-verify-peer", help("nbdTlsVerifyPeer", "NBD clients need certificates too"))
    .option("--public-url <url>", help("publicUrl", "how clients reach the service"))
    .option("--allow-host <name>", help("allowHosts", "another host name to answer to"), collect)
    .option("--allow-origin <origin>", help("allowOrigins", "a web origin that may call"), collect)
    .option(
      "--allow-folder <path>",
      help("allowFolders", "a folder that disks may be in beside the data folder"),
      collect,
    )
    .option("--log-level <level>", help("logLevel", "debug, info, warning or error"))
    .option("--config <file>", 'settings as JSON: {"nbdHost": ...}, as in the environment')
    .action(async (options: ServeOptions) => {
      const { serve } = await import("./serve_action.ts");
      await serve(flagsOf(options), options.config ?? null);
    });
}

interface ServeOptions {
  host?: string;
  port?: number;
  data?: string;
  token?: string;
  auth: boolean;
  nbdHost?: string;
  nbdTls?: string;
  nbdTlsCertificates?: string;
  nbdTlsVerifyPeer?: boolean;
  publicUrl?: string;
  allowHost?: string[];
  allowOrigin?: string[];
  allowFolder?: string[];
  logLevel?: string;
  config?: string;
}

function flagsOf(options: ServeOptions): PartialSettings {
  const { host, port, data, token, nbdHost, publicUrl, logLevel } = options;
  return {
    host,
    port,
    data,
    token,
    // commander's default is true: only the flag itself says anything.
    auth: options.auth ? undefined : false,
    nbdHost,
    nbdTls: options.nbdTls,
    nbdTlsCertificates: options.nbdTlsCertificates,
    nbdTlsVerifyPeer: options.nbdTlsVerifyPeer,
    publicUrl,
    allowHosts: options.allowHost,
    allowOrigins: options.allowOrigin,
    allowFolders: options.allowFolder,
    logLevel,
  };
}

function parseNumber(text: string): number {
  const value = Number(text);
  if (!/^\d+$/.test(text)) throw new InvalidArgumentError("not a number");
  return value;
}

function collect(value: string, previous: string[] = []): string[] {
  return [...previous, value];
}
