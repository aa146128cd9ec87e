/**
 * What a hart does between two slices of its run loop: whether there is anything to execute.
 *
 * HART_RUNNING is stored before the hart looks at other harts' requests: see remote.ts.
 */

import { HART_RUNNING, HART_STATE_WORD, HART_STOPPED, HART_WAITING } from "../layout";
import { hart, hartId } from "../state";
import { isInterruptPending } from "../trap";
import { updateExternalInterrupts } from "./interrupts";
import { handleRemoteRequests } from "./remote";
import { acceptStart, endSuspension, HSM_STOPPED, readHartState } from "./sbi_hsm";

/**
 * Makes the hart ready for its next slice; false if there is none to run: it is stopped, or waits
 * for an interrupt. The caller then sleeps on HART_WAKE_WORD, whose value it read before this call.
 */
export function resumeHart(): bool {
  acceptStart();
  if (readHartState(hartId) === HSM_STOPPED) {
    atomic.store<u32>(hart, HART_STOPPED, HART_STATE_WORD);
    return false;
  }
  updateExternalInterrupts();
  if (atomic.load<u32>(hart, HART_STATE_WORD) === HART_WAITING) {
    // WFI ends with any interrupt that is enabled in mie, whatever mstatus says (Priv 3.3.3).
    if (!isInterruptPending()) return false;
    endSuspension();
  }
  atomic.store<u32>(hart, HART_RUNNING, HART_STATE_WORD);
  handleRemoteRequests();
  return true;
}
