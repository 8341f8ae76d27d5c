//! The CPUID leaves of the guest: what KVM supports, with the topology of one package of `n` cores, one thread each.
//!
//! The leaves are described in the Intel SDM (volume 2, CPUID) and, from 0x8000_0000 on, in the AMD APM (volume 3,
//! appendix E).

use std::io;

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

/// Leaf 1, ECX: the TSC-deadline timer. KVM's local APIC has it, but KVM does not list it.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: there is a hypervisor; leaf 0x4000_0000 identifies it.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: the package has more than one logical processor.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001, ECX: the processors of the package are cores, not threads.
const CMP_LEGACY: u32 = 1 << 1;

/// Leaf 0x4000_0000, EBX, ECX, EDX: "KVMKVMKVM" (Documentation/virt/kvm/x86/cpuid.rst).
const KVM_SIGNATURE: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x0000_004d];
const KVM_SIGNATURE_LEAF: u32 = 0x4000_0000;
const KVM_FEATURES_LEAF: u32 = 0x4000_0001;

/// The leaves that are common to every vCPU of every guest on this host.
#[derive(Clone, Debug)]
pub struct CpuidTemplate(Vec<kvm_cpuid_entry2>);

impl CpuidTemplate {
    /// Reads what `kvm` supports.
    ///
    /// # Errors
    ///
    /// The error of KVM_GET_SUPPORTED_CPUID.
    pub fn new(kvm: &Kvm) -> io::Result<Self> {
        let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(io::Error::from)?;
        Ok(Self::from_entries(supported.as_slice(), kvm.check_extension(Cap::TscDeadlineTimer)))
    }

    fn from_entries(supported: &[kvm_cpuid_entry2], tsc_deadline: bool) -> Self {
        // `for_vcpu` adds the topology leaves.
        let mut leaves = supported.to_vec();
        leaves.retain(|leaf| !matches!(leaf.function, 0xb | 0x1f));
        for leaf in leaves.iter_mut().filter(|leaf| leaf.function == 1) {
            leaf.ecx |= HYPERVISOR | if tsc_deadline { TSC_DEADLINE } else { 0 };
        }
        if !leaves.iter().any(|leaf| leaf.function == KVM_SIGNATURE_LEAF) {
            let (function, eax, [ebx, ecx, edx]) = (KVM_SIGNATURE_LEAF, KVM_FEATURES_LEAF, KVM_SIGNATURE);
            leaves.push(kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() });
        }
        Self(leaves)
    }

    /// Returns the maximum width of a guest-physical address in bits.
    pub fn physical_address_bits(&self) -> u32 {
        // EAX, bits 7-0. A processor without this leaf has 36 (Intel SDM volume 3, 4.1.4).
        self.0.iter().find(|leaf| leaf.function == 0x8000_0008).map_or(36, |leaf| leaf.eax & 0xff)
    }

    /// Returns the leaves of vCPU `id` of `cpus`.
    pub fn for_vcpu(&self, id: u8, cpus: u8) -> Vec<kvm_cpuid_entry2> {
        let id_bits = u32::from(cpus).next_power_of_two().trailing_zeros();
        let id = u32::from(id);
        let others = u32::from(cpus) - 1;
        let mut leaves = self.0.clone();
        for leaf in &mut leaves {
            match (leaf.function, leaf.index) {
                (0x1, _) => {
                    // EBX: 31-24 initial APIC ID, 23-16 addressable IDs in the package.
                    leaf.ebx = leaf.ebx & 0xffff | id << 24 | (1u32 << id_bits).min(0xff) << 16;
                    leaf.edx = set(leaf.edx, HTT, others > 0);
                }
                // EAX: 31-26 core IDs in the package minus 1, 25-14 processors that share the cache minus 1, 7-5 level.
                (0x4, _) if leaf.eax & 0x1f != 0 => {
                    let core_ids = ((1u32 << id_bits) - 1).min(0x3f);
                    leaf.eax = leaf.eax & 0x3fff | core_ids << 26 | sharing(leaf.eax, others);
                }
                (0x8000_0001, _) => leaf.ecx = set(leaf.ecx, CMP_LEGACY, others > 0),
                // ECX: 15-12 width of the core ID in the APIC ID, 7-0 cores minus 1.
                (0x8000_0008, _) => leaf.ecx = leaf.ecx & !0xf0ff | id_bits << 12 | others,
                (0x8000_001d, _) if leaf.eax & 0x1f != 0 => leaf.eax = leaf.eax & 0x3fff | sharing(leaf.eax, others),
                // EAX: APIC ID. EBX: 15-8 threads per core minus 1, 7-0 core ID. ECX: one node, with ID 0.
                (0x8000_001e, _) => (leaf.eax, leaf.ebx, leaf.ecx) = (id, id & 0xff, 0),
                _ => {}
            }
        }
        let highest = leaves.iter().find(|leaf| leaf.function == 0).map_or(0, |leaf| leaf.eax);
        for function in [0xb, 0x1f].into_iter().filter(|function| *function <= highest) {
            leaves.extend(topology(function, id, id_bits, cpus.into()));
        }
        leaves
    }
}

/// Bits 25-14 of a cache leaf: all cores share the third level, and each has its own lower ones.
fn sharing(eax: u32, others: u32) -> u32 {
    let level = eax >> 5 & 0b111;
    if level >= 3 { others << 14 } else { 0 }
}

/// An extended topology leaf: one thread per core, `cpus` cores in the package, and the end of the list.
fn topology(function: u32, id: u32, id_bits: u32, cpus: u32) -> [kvm_cpuid_entry2; 3] {
    // EAX: width of the x2APIC ID below the next level. EBX: processors at this level. ECX: 15-8 type of the level.
    const THREAD: u32 = 1;
    const CORE: u32 = 2;
    let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    let level = |index: u32, eax, ebx, kind: u32| {
        let ecx = kind << 8 | index;
        kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx: id, ..Default::default() }
    };
    [level(0, 0, 1, THREAD), level(1, id_bits, cpus, CORE), level(2, 0, 0, 0)]
}

fn set(word: u32, bit: u32, on: bool) -> u32 {
    if on { word | bit } else { word & !bit }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, eax: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ..Default::default() }
    }

    fn guest(id: u8, cpus: u8) -> impl Fn(u32, u32) -> kvm_cpuid_entry2 {
        let host = [leaf(0, 0, 0x1f), leaf(1, 0, 0), leaf(4, 0, 0x21), leaf(4, 3, 0x63), leaf(0xb, 0, 99)];
        let host = [&host[..], &[leaf(0x8000_0001, 0, 0), leaf(0x8000_0008, 0, 0), leaf(0x8000_001e, 0, 0)]].concat();
        let leaves = CpuidTemplate::from_entries(&host, true).for_vcpu(id, cpus);
        move |function, index| {
            let mut found = leaves.iter().filter(|leaf| (leaf.function, leaf.index) == (function, index));
            let leaf = *found.next().unwrap_or_else(|| panic!("no leaf {function:#x}.{index}"));
            assert!(found.next().is_none(), "leaf {function:#x}.{index} twice");
            leaf
        }
    }

    #[test]
    fn four_cores_number_themselves_in_every_topology_leaf() {
        for id in 0..4 {
            let leaf = guest(id, 4);
            assert_eq!(leaf(1, 0).ebx, u32::from(id) << 24 | 4 << 16);
            assert_eq!(leaf(1, 0).edx & HTT, HTT);
            for function in [0xb, 0x1f] {
                let (thread, core, end) = (leaf(function, 0), leaf(function, 1), leaf(function, 2));
                assert_eq!((thread.eax, thread.ebx, thread.ecx, thread.edx), (0, 1, 0x100, id.into()));
                assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (2, 4, 0x201, id.into()));
                assert_eq!((end.ebx, end.ecx >> 8), (0, 0));
            }
            assert_eq!(leaf(4, 0).eax, 0x21 | 3 << 26, "the first level is private");
            assert_eq!(leaf(4, 3).eax, 0x63 | 3 << 26 | 3 << 14, "the third level is shared by four");
            assert_eq!(leaf(0x8000_0008, 0).ecx, 2 << 12 | 3);
            assert_eq!(leaf(0x8000_001e, 0).eax, u32::from(id));
        }
    }

    #[test]
    fn one_core_is_alone_and_254_fit() {
        let leaf = guest(0, 1);
        assert_eq!((leaf(1, 0).edx & HTT, leaf(0xb, 1).ebx, leaf(0x8000_0001, 0).ecx), (0, 1, 0));
        let leaf = guest(253, 254);
        assert_eq!(leaf(1, 0).ebx, 253 << 24 | 255 << 16);
        assert_eq!((leaf(0xb, 1).eax, leaf(0xb, 1).ebx, leaf(0xb, 1).edx), (8, 254, 253));
    }

    #[test]
    fn the_hypervisor_signs_and_has_a_deadline_timer() {
        let leaf = guest(0, 1);
        assert_eq!(leaf(1, 0).ecx, HYPERVISOR | TSC_DEADLINE);
        let signature = leaf(KVM_SIGNATURE_LEAF, 0);
        let text = [signature.ebx, signature.ecx, signature.edx].map(u32::to_le_bytes).concat();
        assert_eq!(text, b"KVMKVMKVM\0\0\0");
    }
}
