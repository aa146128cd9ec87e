/** The test finisher (sifive,test1): one register that ends the machine. */

import { EXIT_REBOOT, EXIT_SHUTDOWN } from "../layout";
import { refuseAccess } from "./fault";
import { requestExit } from "./signal";

const FINISHER_FAIL: u32 = 0x3333;
const FINISHER_PASS: u32 = 0x5555;
const FINISHER_RESET: u32 = 0x7777;

export function finisherLoad(size: u32): u64 {
  return size === 2 || size === 4 ? 0 : refuseAccess();
}

export function finisherStore(offset: u32, value: u32, size: u32): void {
  if (size !== 2 && size !== 4) {
    refuseAccess();
    return;
  }
  if (offset !== 0) return;
  const command: u32 = value & 0xffff;
  if (command === FINISHER_PASS) requestExit(EXIT_SHUTDOWN, 0);
  else if (command === FINISHER_FAIL) requestExit(EXIT_SHUTDOWN, max(value >> 16, 1));
  else if (command === FINISHER_RESET) requestExit(EXIT_REBOOT, 0);
}
