/**
 * Every setting of the service: from the command line, else from the environment (OVIS_*), else
 * from a JSON file (--config), else a default. One schema checks them all.
 *
 * @module
 */

import { z } from "zod";

const LOOPBACK = /^(localhost|127(\.\d{1,3}){3}|::1)$/;
const URL_ERROR = "must be an http or https address without path";

const OriginSchema = z.string().refine((text) => {
  try {
    return /^https?:$/.test(new URL(text).protocol) && new URL(text).origin === text;
  } catch {
    return false;
  }
}, { error: URL_ERROR });

/** The settings and what is allowed in them. */
const SettingsSchema = z.strictObject({
  host: z.string().min(1).default("127.0.0.1"),
  port: z.int().min(0).max(65535).default(8080),
  data: z.string().min(1),
  token: z.string().regex(/^[\x21-\x7e]{8,256}$/, {
    error: "a token has 8 to 256 visible ASCII characters",
  }).nullable().default(null),
  auth: z.boolean().default(true),
  nbdHost: z.string().min(1).default("127.0.0.1"),
  nbdTls: z.enum(["off", "allowed", "required"]).default("off"),
  nbdTlsCertificates: z.string().min(1).nullable().default(null),
  nbdTlsVerifyPeer: z.boolean().default(false),
  publicUrl: OriginSchema.nullable().default(null),
  allowHosts: z.array(z.string().min(1)).default([]),
  allowOrigins: z.array(OriginSchema).default([]),
  allowFolders: z.array(z.string().regex(/^\//, { error: "must be an absolute path" })).default([]),
  logLevel: z.enum(["debug", "info", "warning", "error"]).default("info"),
}).superRefine(({ auth, host, nbdHost, nbdTls, nbdTlsCertificates }, context) => {
  if (nbdTls !== "off" && nbdTlsCertificates === null) {
    const message = "needs nbdTlsCertificates, the folder of the certificates";
    context.addIssue({ code: "custom", path: ["nbdTls"], message });
  }
  if (auth) return;
  for (const [path, address] of [["host", host], ["nbdHost", nbdHost]] as const) {
    if (LOOPBACK.test(address)) continue;
    context.addIssue({
      code: "custom",
      path: [path],
      message: `without authentication the service listens on loopback only, not on ${address}`,
    });
  }
});

/** The settings of a service, checked and complete. */
export interface Settings {
  /** The address that HTTP listens on, or a name of it. */
  host: string;
  /** The port that HTTP listens on; 0: any free one. */
  port: number;
  /** The data folder. */
  data: string;
  /** What requests must carry, instead of the token kept in the data folder; null: that one. */
  token: string | null;
  /** False: no token is asked for. Then both addresses must be loopback ones. */
  auth: boolean;
  /** The address that the machines' NBD servers listen on, each on a port of its own. */
  nbdHost: string;
  /** Whether clients of NBD over TCP may, or must, use TLS. */
  nbdTls: "off" | "allowed" | "required";
  /** Holds server-cert.pem, server-key.pem, and ca-cert.pem to verify clients by. */
  nbdTlsCertificates: string | null;
  /** With TLS, NBD clients must show a certificate that ca-cert.pem signed. */
  nbdTlsVerifyPeer: boolean;
  /** The origin by which clients reach the service; null: what each request says. */
  publicUrl: string | null;
  /** Host names, without port, to answer to beside IP addresses and localhost. */
  allowHosts: string[];
  /** Origins of web pages that may call, beside the service's own. */
  allowOrigins: string[];
  /** Folders outside of the data folder that disks may be in and temporary images go to. */
  allowFolders: string[];
  /** The least important log lines that are written. */
  logLevel: "debug" | "info" | "warning" | "error";
}

/** Settings as they are given: any may be missing. */
export type PartialSettings = { [K in keyof Settings]?: unknown };

/** Settings that can't be used. */
export class SettingsError extends Error {
  /** What stands before the message when it is printed. */
  override readonly name = "SettingsError";
}

const FROM_ENVIRONMENT: Record<keyof Settings, (text: string) => unknown> = {
  host: String,
  port: Number,
  data: String,
  token: String,
  auth: (text) => text !== "0" && text !== "false",
  nbdHost: String,
  nbdTls: String,
  nbdTlsCertificates: String,
  nbdTlsVerifyPeer: (text) => text === "1" || text === "true",
  publicUrl: String,
  allowHosts: splitList,
  allowOrigins: splitList,
  allowFolders: splitList,
  logLevel: String,
};

/** The settings that count. `environment` reads one variable; `file` is what --config holds. */
export function resolveSettings(sources: {
  flags: PartialSettings;
  environment: (name: string) => string | undefined;
  file: PartialSettings;
}): Settings {
  const { flags, environment, file } = sources;
  const merged: PartialSettings = { data: defaultDataPath(environment), ...file };
  for (const [key, read] of Object.entries(FROM_ENVIRONMENT)) {
    const text = environment(environmentName(key));
    if (text !== undefined) merged[key as keyof Settings] = read(text);
  }
  for (const [key, value] of Object.entries(flags)) {
    if (value !== undefined) merged[key as keyof Settings] = value;
  }
  const result = SettingsSchema.safeParse(merged);
  if (result.success) return result.data;
  const reasons = result.error.issues.map(({ path, message }) =>
    path.length === 0 ? message : `${path.join(".")}: ${message}`
  );
  throw new SettingsError(reasons.join("; "));
}

/** The environment variable of a setting: `nbdHost` is OVIS_NBD_HOST. */
export function environmentName(key: string): string {
  return `OVIS_${key.replaceAll(/[A-Z]/g, (letter) => `_${letter}`).toUpperCase()}`;
}

/** Where data is kept unless told otherwise. */
export function defaultDataPath(environment: (name: string) => string | undefined): string {
  const base = environment("XDG_DATA_HOME") ?? `${environment("HOME") ?? "."}/.local/share`;
  return `${base}/ovis`;
}

function splitList(text: string): string[] {
  return text.split(",").map((entry) => entry.trim()).filter((entry) => entry !== "");
}
