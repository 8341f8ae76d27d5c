// go test -exec 'kickvm exec --' ./... runs each test binary in a guest of its own. KICKVM_KERNEL is its kernel.
package guest

import (
	"os"
	"testing"
)

func TestThisIsAGuestOfKickvm(t *testing.T) {
	if _, err := os.Stat("/.kickvm"); err != nil {
		t.Fatal(err)
	}
}
