import { assertEquals } from "@std/assert";
import { BareMachine, layout, RAM } from "../support/bare_hart.ts";

const LR_W_A1_A0 = 0x100525af;
const LR_D_A1_A0 = 0x100535af;

Deno.test("LR.W extends the sign of what it loads, LR.D loads it whole", () => {
  const machine = new BareMachine();
  const hart = machine.hart();
  const gpa = RAM + 0x10_0000;
  const offset = layout.RAM_BASE + gpa - RAM;
  for (const value of [0n, 1n, 0x7fff_ffffn, 0x8000_0000n, 0xffff_ffffn, 0x1234_8765_4321_0fedn]) {
    machine.memory.view.setBigUint64(offset, value, true);
    hart.setX(10, BigInt(gpa));
    hart.execute(LR_W_A1_A0);
    assertEquals(hart.x(11), BigInt.asUintN(64, BigInt.asIntN(32, value)));
    hart.execute(LR_D_A1_A0);
    assertEquals(hart.x(11), value);
  }
});
