/**
 * The command line of the storage daemon: which options there are, in their order.
 *
 * @module
 */

/** What --help prints. */
export const USAGE = `Usage: ovis storage-daemon [options]
Block nodes and exports without a machine: qemu-storage-daemon's options

  -h, --help             display this help and exit
  -V, --version          output version information and exit

  --blockdev [driver=]<driver>[,node-name=<N>][,discard=ignore|unmap]
             [,cache.direct=on|off][,cache.no-flush=on|off]
             [,read-only=on|off][,auto-read-only=on|off]
             [,force-share=on|off][,detect-zeroes=on|off|unmap]
             [,driver specific parameters...]
                         configure a block node

  --chardev stdio,id=<id>
  --chardev socket,id=<id>,path=<path>[,server=on|off][,wait=on|off]
  --chardev socket,id=<id>,host=<host>,port=<port>[,server=on|off][,wait=on|off]
                         where a monitor listens

  --export [type=]nbd,id=<id>,node-name=<node-name>[,name=<export-name>]
           [,writable=on|off][,bitmaps.0=<name>]
                         export a node over NBD (requires --nbd-server)

  --monitor [chardev=]name[,mode=control][,pretty[=on|off]]
                         configure a QMP monitor

  --nbd-server addr.type=inet,addr.host=<host>,addr.port=<port>
               [,tls-creds=<id>][,max-connections=<n>]
  --nbd-server addr.type=unix,addr.path=<path>[,max-connections=<n>]
                         start an NBD server for exporting nodes

  --object <type>[,<property>=<value>...]
                         make an object: throttle-group, tls-creds-x509, iothread

  --pidfile <path>       write the process id to a file after startup

Options are carried out in their order. Those with parameters take JSON too: --blockdev '{...}'.
--daemonize is not supported: start the daemon in the background and wait for its --pidfile.
`;

/** An option as it was given. */
export interface DaemonOption {
  /** Without the dashes. */
  readonly name: OptionName;
  /** What stands behind it, "" for those without. */
  readonly value: string;
}

/** All options. */
export type OptionName =
  | "blockdev"
  | "chardev"
  | "daemonize"
  | "export"
  | "help"
  | "monitor"
  | "nbd-server"
  | "object"
  | "pidfile"
  | "trace"
  | "version";

const TAKES_VALUE: Record<OptionName, boolean> = {
  blockdev: true,
  chardev: true,
  daemonize: false,
  export: true,
  help: false,
  monitor: true,
  "nbd-server": true,
  object: true,
  pidfile: true,
  trace: true,
  version: false,
};

const SHORT: Record<string, OptionName> = { "-h": "help", "-T": "trace", "-V": "version" };

/** A command line that can't be understood. */
export class UsageError extends Error {
  /** What stands before the message when it is printed. */
  override readonly name = "UsageError";
}

/** Understands a command line as getopt_long(3) does. Throws a UsageError. */
export function parseOptions(args: readonly string[]): DaemonOption[] {
  const options: DaemonOption[] = [];
  for (let at = 0; at < args.length; at++) {
    const arg = args[at] ?? "";
    const short = SHORT[arg];
    if (short === undefined && !arg.startsWith("--")) {
      throw new UsageError(`Unexpected argument: ${arg}`);
    }
    const equals = arg.indexOf("=");
    const text = equals < 0 ? arg.slice(2) : arg.slice(2, equals);
    const name = short ?? findName(text);
    let value = equals < 0 ? undefined : arg.slice(equals + 1);
    if (!TAKES_VALUE[name]) {
      if (value !== undefined) throw new UsageError(`option '--${name}' doesn't allow an argument`);
    } else if (value === undefined) {
      value = args[++at];
      if (value === undefined) throw new UsageError(`option '--${name}' requires an argument`);
    }
    options.push({ name, value: value ?? "" });
  }
  return options;
}

/** The option of that name, which may be cut short where that leaves no doubt. */
function findName(text: string): OptionName {
  const names = Object.keys(TAKES_VALUE) as OptionName[];
  const exact = names.find((name) => name === text);
  if (exact !== undefined) return exact;
  const candidates = text === "" ? [] : names.filter((name) => name.startsWith(text));
  const [only] = candidates;
  if (only === undefined) throw new UsageError(`unrecognized option '--${text}'`);
  if (candidates.length > 1) {
    const list = candidates.map((name) => `'--${name}'`).join(" ");
    throw new UsageError(`option '--${text}' is ambiguous; possibilities: ${list}`);
  }
  return only;
}
