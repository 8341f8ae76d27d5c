{
  description = "A minimal VMM for Linux/KVM";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      pkgs = nixpkgs.legacyPackages.x86_64-linux;
      manifest = (builtins.fromTOML (builtins.readFile ./Cargo.toml)).package;
    in
    {
      packages.x86_64-linux.default = pkgs.rustPlatform.buildRustPackage {
        pname = manifest.name;
        inherit (manifest) version;
        src = self;
        cargoLock.lockFile = ./Cargo.lock;
        # `kickvm exec` copies its own binary into the guest.
        buildInputs = [ pkgs.glibc.static ];
        env.RUSTFLAGS = "-C target-feature=+crt-static";
        # The tests need /dev/kvm.
        doCheck = false;
        meta = {
          inherit (manifest) description homepage;
          license = with pkgs.lib.licenses; [
            asl20
            bsd3
          ];
          mainProgram = "kickvm";
          platforms = [ "x86_64-linux" ];
        };
      };
    };
}
