# A batch job of 8 shards, by the docker driver; its containers need no privileges. Nomad would restart and reschedule a
# task whatever its exit code, so both are off: a verdict of the guest is final.
job "guest" {
  type = "batch"

  group "guest" {
    count = 8

    restart {
      attempts = 0
      mode     = "fail"
    }

    reschedule {
      attempts  = 0
      unlimited = false
    }

    task "guest" {
      driver = "docker"

      # Longer than --kill-after and the end of the run.
      kill_timeout = "30s"

      config {
        image   = "registry.example.org/kickvm:latest"
        command = "kickvm"

        args = [
          "exec",
          "--reserve-codes",
          "--kernel=/boot/vmlinuz",
          "--memory=1G",
          "--timeout=10m",
          "--kill-after=20s",
          "--fail-on=default",
          "--report=${NOMAD_ALLOC_DIR}/report.json",
          "--junit=${NOMAD_ALLOC_DIR}/junit.xml",
          "--copy=/bin/busybox",
          "--copy=/work",
          "--workdir=/work",
          "--",
          "busybox",
          "sh",
          "tests/in-guest.sh",
          "${NOMAD_ALLOC_INDEX}",
        ]

        devices = [
          {
            host_path          = "/dev/kvm"
            container_path     = "/dev/kvm"
            cgroup_permissions = "rw"
          },
        ]
      }

      resources {
        cpu    = 2000
        memory = 1200
      }
    }
  }
}
