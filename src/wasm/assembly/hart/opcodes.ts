/**
 * The interpreter's opcodes: what a decoded instruction's top byte says.
 *
 * A decoded instruction is 8 bytes:
 *
 *   63            32 31    24 23 19    15 11     7   3 2 1  0
 *   +---------------+--------+-----+---+-----+---+----+-----+--+
 *   |      imm      | opcode | rs2 |   | rs1 |   | rd | len |  |
 *   +---------------+--------+-----+---+-----+---+----+-----+--+
 *
 * Register numbers stand shifted left by 3, so that they are byte offsets into the register file;
 * len is the instruction's length, 2 or 4 bytes, in place. A decoded page has one such slot for
 * every 2 bytes of code: the next instruction is 4 * len bytes on. A slot of zeroes is not decoded
 * yet.
 *
 * Near jumps stay inside their page and have in imm the distance, in bytes of decoded page, from
 * the next instruction; far ones have the guest's distance from their own address.
 *
 * The order matters for speed. V8 lays the handlers out from the last to the first and allocates
 * registers in that order; from the first handler on that needs a certain one (a shift, a
 * division), values that live across the dispatch stay on the stack. So what is frequent and simple
 * stands last.
 */

/** All zero: not decoded yet. */
export const OP_UNDECODED: u32 = 0;

/** Floating point: only what may be done with the host's arithmetic, when it may be. */
export const OP_FLW: u32 = 1;
export const OP_FLD: u32 = 2;
export const OP_FSW: u32 = 3;
export const OP_FSD: u32 = 4;
/** imm: the instruction itself, here and below, for the slow path. */
export const OP_FADD_D: u32 = 5;
export const OP_FSUB_D: u32 = 6;
export const OP_FMUL_D: u32 = 7;
export const OP_FDIV_D: u32 = 8;
export const OP_FMADD_D: u32 = 9;
export const OP_FMSUB_D: u32 = 10;
export const OP_FNMSUB_D: u32 = 11;
export const OP_FNMADD_D: u32 = 12;
export const OP_FADD_S: u32 = 13;
export const OP_FSUB_S: u32 = 14;
export const OP_FMUL_S: u32 = 15;
export const OP_FDIV_S: u32 = 16;
export const OP_FSGNJ_D: u32 = 17;
/** Not with rd x0, which the slow path tells apart. */
export const OP_FMV_X_D: u32 = 18;
export const OP_FMV_D_X: u32 = 19;
export const OP_FLE_D: u32 = 20;
export const OP_FLT_D: u32 = 21;
export const OP_FEQ_D: u32 = 22;
export const OP_FCVT_D_W: u32 = 23;

export const OP_FENCE: u32 = 24;

// Zba, Zbb, Zbs
export const OP_ADD_UW: u32 = 25;
export const OP_SH1ADD: u32 = 26;
export const OP_SH2ADD: u32 = 27;
export const OP_SH3ADD: u32 = 28;
export const OP_SH1ADD_UW: u32 = 29;
export const OP_SH2ADD_UW: u32 = 30;
export const OP_SH3ADD_UW: u32 = 31;
export const OP_SLLI_UW: u32 = 32;
export const OP_ANDN: u32 = 33;
export const OP_ORN: u32 = 34;
export const OP_XNOR: u32 = 35;
export const OP_CLZ: u32 = 36;
export const OP_CLZW: u32 = 37;
export const OP_CTZ: u32 = 38;
export const OP_CTZW: u32 = 39;
export const OP_CPOP: u32 = 40;
export const OP_CPOPW: u32 = 41;
export const OP_MAX: u32 = 42;
export const OP_MAXU: u32 = 43;
export const OP_MIN: u32 = 44;
export const OP_MINU: u32 = 45;
export const OP_SEXT_B: u32 = 46;
export const OP_SEXT_H: u32 = 47;
export const OP_ZEXT_H: u32 = 48;
export const OP_ROL: u32 = 49;
export const OP_ROLW: u32 = 50;
export const OP_ROR: u32 = 51;
export const OP_RORW: u32 = 52;
export const OP_RORI: u32 = 53;
export const OP_RORIW: u32 = 54;
export const OP_ORC_B: u32 = 55;
export const OP_REV8: u32 = 56;
export const OP_BCLR: u32 = 57;
export const OP_BCLRI: u32 = 58;
export const OP_BEXT: u32 = 59;
export const OP_BEXTI: u32 = 60;
export const OP_BINV: u32 = 61;
export const OP_BINVI: u32 = 62;
export const OP_BSET: u32 = 63;
export const OP_BSETI: u32 = 64;

/** M in the order of funct3. */
export const OP_MUL: u32 = 65;
export const OP_MULH: u32 = 66;
export const OP_MULHSU: u32 = 67;
export const OP_MULHU: u32 = 68;
export const OP_DIV: u32 = 69;
export const OP_DIVU: u32 = 70;
export const OP_REM: u32 = 71;
export const OP_REMU: u32 = 72;
export const OP_MULW: u32 = 73;
export const OP_DIVW: u32 = 74;
export const OP_DIVUW: u32 = 75;
export const OP_REMW: u32 = 76;
export const OP_REMUW: u32 = 77;

export const OP_SLLI: u32 = 78;
export const OP_SRLI: u32 = 79;
export const OP_SRAI: u32 = 80;
export const OP_SLLIW: u32 = 81;
export const OP_SRLIW: u32 = 82;
export const OP_SRAIW: u32 = 83;
export const OP_SLL: u32 = 84;
export const OP_SRL: u32 = 85;
export const OP_SRA: u32 = 86;
export const OP_SLLW: u32 = 87;
export const OP_SRLW: u32 = 88;
export const OP_SRAW: u32 = 89;

/** Stands after the last slot of a page: go on at the next page. */
export const OP_PAGE_END: u32 = 90;
export const OP_NOP: u32 = 91;

export const OP_LI: u32 = 92;
export const OP_AUIPC: u32 = 93;
export const OP_MV: u32 = 94;
export const OP_ADDI: u32 = 95;
export const OP_SLTI: u32 = 96;
export const OP_SLTIU: u32 = 97;
export const OP_XORI: u32 = 98;
export const OP_ORI: u32 = 99;
export const OP_ANDI: u32 = 100;
export const OP_ADDIW: u32 = 101;
export const OP_ADD: u32 = 102;
export const OP_SUB: u32 = 103;
export const OP_SLT: u32 = 104;
export const OP_SLTU: u32 = 105;
export const OP_XOR: u32 = 106;
export const OP_OR: u32 = 107;
export const OP_AND: u32 = 108;
export const OP_ADDW: u32 = 109;
export const OP_SUBW: u32 = 110;

/** Loads and stores in the order of funct3. */
export const OP_LB: u32 = 111;
export const OP_LH: u32 = 112;
export const OP_LW: u32 = 113;
export const OP_LD: u32 = 114;
export const OP_LBU: u32 = 115;
export const OP_LHU: u32 = 116;
export const OP_LWU: u32 = 117;
export const OP_SB: u32 = 118;
export const OP_SH: u32 = 119;
export const OP_SW: u32 = 120;
export const OP_SD: u32 = 121;

export const OP_J: u32 = 122;
export const OP_J_FAR: u32 = 123;
export const OP_JAL: u32 = 124;
export const OP_JAL_FAR: u32 = 125;
export const OP_JR: u32 = 126;
export const OP_JALR: u32 = 127;

export const OP_BEQ: u32 = 128;
export const OP_BNE: u32 = 129;
export const OP_BLT: u32 = 130;
export const OP_BGE: u32 = 131;
export const OP_BLTU: u32 = 132;
export const OP_BGEU: u32 = 133;
/** The far form of a branch is its near form + 6. */
export const OP_BEQ_FAR: u32 = 134;
export const OP_BNE_FAR: u32 = 135;
export const OP_BLT_FAR: u32 = 136;
export const OP_BGE_FAR: u32 = 137;
export const OP_BLTU_FAR: u32 = 138;
export const OP_BGEU_FAR: u32 = 139;

// ---- not in the loop: executed by slow.ts -------------------------------------------------------

/** The loop leaves this opcode and all above it to slow.ts. */
export const OP_FIRST_SLOW: u32 = 140;

/** imm: the instruction, for tval. */
export const OP_ILLEGAL: u32 = 140;

/** A load to x0: rs2 has log2 of the size. */
export const OP_LOAD_X0: u32 = 141;

export const OP_FENCE_I: u32 = 142;
export const OP_ECALL: u32 = 143;
export const OP_EBREAK: u32 = 144;

/** imm: the instruction itself, from here on. */
export const OP_MRET: u32 = 145;
export const OP_SRET: u32 = 146;
export const OP_WFI: u32 = 147;

/** SFENCE.VMA and SINVAL.VMA. */
export const OP_SFENCE_VMA: u32 = 148;

/** SFENCE.W.INVAL and SFENCE.INVAL.IR: nothing to do, but not for U mode. */
export const OP_SFENCE_INVAL: u32 = 149;

/** The six CSR instructions. */
export const OP_CSR: u32 = 150;

/** imm: funct5. */
export const OP_LR_W: u32 = 151;
export const OP_LR_D: u32 = 152;
export const OP_SC_W: u32 = 153;
export const OP_SC_D: u32 = 154;
export const OP_AMO_W: u32 = 155;
export const OP_AMO_D: u32 = 156;

/** Every other instruction of OP-FP. imm: the instruction itself. */
export const OP_FLOAT: u32 = 157;

/** FMADD and its kin, where not above. */
export const OP_FMA: u32 = 158;

/** An entry of translated code stands here; length 0, imm: its handle (translator/regions.ts). */
export const OP_TRANSLATED: u32 = 159;

/** In the translator alone: a CSR instruction after which translated code may go on. */
export const OP_CSR_INLINE: u32 = 160;
